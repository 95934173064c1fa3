"""Rows of the harness's tasks, and an evaluator of them."""

import json

from cfsp.evaluation.zero_shot import ZeroShot

HUB = {
    "boolq": {"question": "is water wet", "passage": "Water wets.", "idx": 0, "label": 1},
    "piqa": {"goal": "Open a jar", "sol1": "Twist the lid.", "sol2": "Sing to it.", "label": 0},
    "hellaswag": {
        "ctx_a": "A man stands [header] up.",
        "ctx_b": "he",
        "activity_label": "Standing",
        "endings": ["sits [title] down.", "flies.", "melts.", "sings."],
        "label": "3",
    },
    "winogrande": {
        "sentence": "The cup fell off the table because _ was slippery.",
        "option1": "the cup",
        "option2": "the table",
        "answer": "2",
    },
    "arc_easy": {
        "question": "Which one is hot?",
        "choices": {"text": ["ice", "fire", "snow"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    "arc_challenge": {
        "question": "Which one is cold?",
        "choices": {"text": ["ice", "fire", "sun", "sand"], "label": ["1", "2", "3", "4"]},
        "answerKey": "1",
    },
    "openbookqa": {
        "question_stem": "Birds have",
        "choices": {"text": ["wings", "wheels", "keys", "doors"], "label": ["A", "B", "C", "D"]},
        "answerKey": "A",
    },
    "mmlu_anatomy": {
        "question": " Which one beats? ",
        "subject": "anatomy",
        "choices": ["heart", "hair", "nail", "tooth"],
        "answer": 0,
    },
}
"""One made-up row per task, in the columns of the data set that the harness reads from the hub."""


LOCAL = {
    **HUB,
    "boolq": {"question": "is water wet", "passage": "Water wets.", "answer": True},
    "hellaswag": {
        "query": "Standing: A man stands up. He",
        "choices": ["sits. down.", "flies.", "melts.", "sings."],
        "gold": 3,
    },
}
"""The same rows as files have them: google/boolq's columns, and a HellaSwag put together before."""


def write_rows(folder, task, rows=None):
    """Write a task's own row four times, or these rows. -> the file"""
    path = folder / f"{task}.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows or [LOCAL[task]] * 4))
    return path


def evaluator(tasks, **options):
    return ZeroShot(**{"tasks": tasks, "shots": 0, "limit": None, "batch_size": 4, **options})
