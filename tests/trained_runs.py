"""Overrides of runs whose schedule trains."""


def own_text(text_file, window=16, held_out=8):
    return [
        "recovery/data@schedule.data=text",
        f"schedule.data.sources.text.text.paths={text_file}",
        f"schedule.data.window={window}",
        f"schedule.data.held_out={held_out}",
    ]
