"""`cfsp-chat`: talk with a model, or let it continue a text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from transformers.utils import logging

from cfsp.checkpoints.load import load
from cfsp.checks import check_integer, check_number
from cfsp.cli.early import from_hub
from cfsp.data.chats import conversation_tokens, has_template
from cfsp.model.blocks import check_positions, is_causal, max_positions
from cfsp.running.plugins import import_plugins, look_here

LENGTH = 256
"""Tokens of an answer if neither the user nor the model says how many."""

EXAMPLES = """
examples:
  cfsp-chat my/smaller_model                           talk; the answer appears as it is made
  cfsp-chat my/smaller_model --device cuda --temperature 0.7
  cfsp-chat my/smaller_model --prompt 'The capital of France is'
  cat question.txt | cfsp-chat my/smaller_model > answer.txt
      what is piped in (stdin) is one prompt, and the answer is all that goes to stdout

A model whose tokenizer has a chat template gets your lines as turns of a conversation. Any other
continues the text, which is your lines and its answers. The model's own generation config decides
how tokens are chosen, unless --temperature does; 0 takes the likeliest.

/reset forgets the conversation, /quit or Ctrl-D ends. Ctrl-C ends an answer; twice, the program.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Talk until the user ends it; an error becomes one line and exit code 1."""
    options = parser().parse_args(arguments)
    logging.set_verbosity_error()  # generate() warns of options that are chosen here
    try:
        talk = opened(options)
        if options.prompt is not None or not sys.stdin.isatty():
            prompt = sys.stdin.read() if options.prompt is None else options.prompt
            talk.answer(prompt.rstrip("\n"))
        else:
            converse(talk)
    except (ValueError, OSError) as error:
        print(f"cfsp-chat: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise SystemExit(130) from None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="cfsp-chat",
        description="Talk with a pruned model, or let it continue a text.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("model", metavar="DIR", help="a saved model; a hub id or 'reference' will do too")
    add("--prompt", metavar="TEXT", help="answer this and end; without it, text from a pipe (stdin)")
    add("--max-new-tokens", type=int, metavar="N", help=f"tokens of an answer (the model's own, or {LENGTH})")
    add("--temperature", type=float, metavar="T", help="0: the likeliest token; else sample with T")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (cpu)")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (auto)")
    add("--plugin", action="append", default=[], metavar="MODULE", help="a module to import first")
    return made


def opened(options: argparse.Namespace) -> Talk:
    """Load the model, describe it on stderr, and return a conversation. Raises what `load` raises."""
    if options.max_new_tokens is not None:
        check_integer("max-new-tokens", options.max_new_tokens, least=1)
    look_here()
    import_plugins(options.plugin)
    print(f"cfsp-chat: loading {options.model}{from_hub(options.model)}", file=sys.stderr)
    model, tokenizer = load(options.model, device=options.device, dtype=options.dtype)
    if not is_causal(model):
        raise ValueError(f"{options.model} is a {type(model).__name__}; expected a causal language model")
    way = "its chat template" if has_template(tokenizer) else "no chat template: it continues the text"
    print(f"cfsp-chat: {model.num_parameters():,} parameters on {model.device}; {way}", file=sys.stderr)
    return Talk(model, tokenizer, options.max_new_tokens, choice(options.temperature))


def choice(temperature: float | None) -> dict[str, Any]:
    """Return the options with which `generate` samples; none if the model's own config decides."""
    if temperature is None:
        return {}
    check_number("temperature", temperature, least=0)
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature}


def converse(talk: Talk) -> None:
    """Read lines and answer them until the user ends it."""
    print("cfsp-chat: /reset begins anew, /quit ends; Ctrl-C ends an answer", file=sys.stderr)
    interrupted = False
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if interrupted:
                return
            interrupted = True
            print("cfsp-chat: Ctrl-C again, Ctrl-D or /quit ends", file=sys.stderr)
            continue
        interrupted = False
        if line == "/quit":
            return
        if line == "/reset":
            talk.turns.clear()
        elif line:
            try:
                talk.answer(line)
            except KeyboardInterrupt:
                interrupted = True
                print()
            except ValueError as error:
                print(f"cfsp-chat: {error}; /reset begins anew", file=sys.stderr)


class Talk:
    """A conversation with a model. turns: all so far, including interrupted answers."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int | None,
        choice: dict[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.max_new_tokens, self.choice = (
            model,
            tokenizer,
            max_new_tokens,
            choice,
        )
        self.turns: list[dict[str, str]] = []

    @torch.no_grad()
    def answer(self, text: str) -> None:
        """Print the model's answer to a text while it is generated.

        Raises:
            ValueError: the text is empty, or no positions are left for an answer; no turn is added.
            KeyboardInterrupt: the user interrupted; the printed part is added as a turn.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        ids = conversation_tokens(self.tokenizer, turns, has_template(self.tokenizer))
        length = self.length(len(ids))
        inputs = torch.tensor([ids], device=self.model.device)
        voice = Voice(self.tokenizer)
        try:
            self.model.generate(  # pyright: ignore[reportCallIssue]  # of classes that can generate
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=length,
                streamer=voice,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
                **self.choice,
            )
        finally:
            self.turns = [*turns, {"role": "assistant", "content": voice.said}]

    def length(self, prompt: int) -> int:
        """Return the most tokens of an answer. Raises ValueError if the model has no positions left."""
        if not prompt:
            raise ValueError("the prompt has no token; expected some text")
        most = max_positions(self.model)
        if self.max_new_tokens is not None:
            check_positions(self.model, prompt + self.max_new_tokens, "prompt + max-new-tokens")
            return self.max_new_tokens
        wanted = self.model.generation_config.max_new_tokens or LENGTH
        check_positions(self.model, prompt + 1, "the conversation and an answer")
        return wanted if most is None else min(wanted, most - prompt)


class Voice(TextStreamer):
    """Prints an answer while it is generated, and stores it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.said = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.said += text
        print(text, end="\n" if stream_end else "", flush=True)


if __name__ == "__main__":
    main()
