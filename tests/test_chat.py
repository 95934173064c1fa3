"""`cfsp-chat`: what a model says, as it says it."""

import builtins
import io
import sys

import pytest
from transformers import AutoTokenizer

from cfsp.cli import chat
from cfsp.cli.chat import main
from cfsp.data.chats import conversation_tokens
from cfsp.evaluation.samples import Samples

TEMPLATE = "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}{% endfor %}"


@pytest.fixture
def terminal(monkeypatch):
    """A terminal at which these lines are typed; an exception is one that a key raises."""

    def typed(*lines):
        waiting = iter([*lines, EOFError()])

        def read(prompt):
            line = next(waiting)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(builtins, "input", read)

    return typed


@pytest.fixture
def asked(monkeypatch):
    """The conversations that the model was asked to go on with."""
    found = []

    def tokens(tokenizer, turns, template):
        found.append([turn["content"] for turn in turns])
        return conversation_tokens(tokenizer, turns, template)

    monkeypatch.setattr(chat, "conversation_tokens", tokens)
    return found


def test_an_answer_is_the_likeliest_text(tiny, tiny_checkpoint, tokenizer, capsys):
    main([str(tiny_checkpoint), "--prompt", "the cat sat", "--max-new-tokens", "5", "--temperature", "0"])
    out, err = capsys.readouterr()
    assert out == Samples(["the cat sat"], 5).say(tiny, tokenizer)["the cat sat"] + "\n"
    assert "no chat template: it continues the text" in err


def test_standard_input_is_answered(tiny_checkpoint, monkeypatch, capsys):
    arguments = [str(tiny_checkpoint), "--max-new-tokens", "5"]
    main([*arguments, "--prompt", "the cat"])
    once = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n"))
    main(arguments)
    assert capsys.readouterr().out == once


def test_a_conversation_is_kept_until_it_is_reset(terminal, asked, tiny_checkpoint, capsys):
    terminal("one", "two", "/reset", "three", "", "/quit", "four")
    main([str(tiny_checkpoint), "--max-new-tokens", "3"])
    first, second, third = asked
    assert (first, third) == (["one"], ["three"])
    assert second[::2] == ["one", "two"]
    assert second[1] == capsys.readouterr().out.splitlines()[0]


def test_a_conversation_that_is_full_goes_on_after_a_reset(terminal, asked, tiny_checkpoint, capsys):
    terminal("the cat " * 40, "the cat", "/quit")
    main([str(tiny_checkpoint)])
    assert "the model has 64 positions; expected at most 64; /reset begins anew" in capsys.readouterr().err
    assert asked[1] == ["the cat"]  # what could not be answered is forgotten


def test_control_c_ends_an_answer_and_twice_the_program(
    terminal, asked, tiny_checkpoint, monkeypatch, capsys
):
    def interrupted(self, text, stream_end=False):
        self.said += text
        raise KeyboardInterrupt

    terminal("one", "two", KeyboardInterrupt(), "three")
    monkeypatch.setattr(chat.Voice, "on_finalized_text", interrupted)
    main([str(tiny_checkpoint), "--max-new-tokens", "5"])
    assert [turns[::2] for turns in asked] == [["one"], ["one", "two"]]


def test_control_c_at_the_prompt_says_how_to_end(terminal, tiny_checkpoint, capsys):
    terminal(KeyboardInterrupt(), KeyboardInterrupt(), "never read")
    main([str(tiny_checkpoint)])
    assert "Ctrl-C again, Ctrl-D or /quit ends" in capsys.readouterr().err


def test_turns_go_through_the_chat_template(tiny, tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "chat"
    tiny.generation_config.max_new_tokens = 4
    tiny.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    main([str(folder), "--prompt", "the cat"])
    out, err = capsys.readouterr()
    assert "its chat template" in err
    assert out == Samples(["<user>the cat"], 4).say(tiny, tokenizer)["<user>the cat"] + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "the prompt has no token; expected some text"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max-new-tokens=0: expected a whole number"),
        (["--prompt", "a", "--temperature", "-1"], "temperature=-1.0: expected a number of at least 0"),
        (["--prompt", "a", "--max-new-tokens", "99"], "the model has 64 positions"),
        (["--prompt", "a", "--device", "cuda:9"], "device='cuda:9'"),
    ],
)
def test_errors_are_one_line(tiny_checkpoint, capsys, arguments, message):
    with pytest.raises(SystemExit, match="1"):
        main([str(tiny_checkpoint), *arguments])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("cfsp-chat: error: ")
    assert message in last
