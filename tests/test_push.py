"""Pushing a saved model to a hub, which here is a server of the test's own."""

import shlex

import huggingface_hub
import pytest
from hub import serving
from huggingface_hub import HfApi, constants

from cfsp.checkpoints.push import check_push, push
from cfsp.cli.push import main


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    with serving() as served:
        monkeypatch.setattr("cfsp.checkpoints.push.HfApi", lambda: HfApi(endpoint=served.url))
        yield served


@pytest.fixture
def saved(tiny_checkpoint, tmp_path, cli):
    """A folder that a run saved."""
    cli("evaluation=[]", f"save={tmp_path}/model")
    return tmp_path / "model"


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_arrives_is_the_folder(hub, saved, capsys):
    main([str(saved), "me/small", "--private"])
    out, err = capsys.readouterr()
    assert out == f"{hub.url}/me/small\n"
    assert "files" in err
    assert hub.repos["me/small"] == files(saved)
    assert hub.private["me/small"]
    assert [*hub.objects.values()] == [(saved / "model.safetensors").read_bytes()]
    assert {"model.safetensors", "README.md", "plan.json", "record.json"} <= hub.repos["me/small"].keys()


def test_a_repository_that_is_there_is_used_again(hub, saved):
    push(saved, "me/small")
    (saved / "NOTES.txt").write_text("more\n")
    push(saved, "me/small")
    assert hub.repos["me/small"] == files(saved)


def test_nothing_is_published_by_mistake(hub, saved):
    hub.create({"organization": "me", "name": "small", "private": False})
    with pytest.raises(ValueError, match="push='me/small' is a public repository"):
        push(saved, "me/small", private=True)
    assert hub.repos["me/small"] == {}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("step", ["repos/create", "preupload", "objects/batch", "/put/", "commit"])
def test_a_push_that_fails_says_how_to_go_on(hub, saved, capsys, step):
    before = files(saved)
    hub.fail = step
    with pytest.raises(SystemExit, match="1"):
        main([str(saved), "me/small"])
    (_, line) = capsys.readouterr().err.splitlines()
    assert line.startswith("cfsp-push: error: push='me/small' failed (")
    assert not hub.repos.get("me/small")  # one commit: all or nothing
    assert files(saved) == before
    hub.fail = None
    command = shlex.split(line.partition("again: ")[2])
    assert command[0] == "cfsp-push"
    main(command[1:])
    assert hub.repos["me/small"] == before


def test_no_one_answers(hub, saved, monkeypatch):
    monkeypatch.setattr("cfsp.checkpoints.push.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    with pytest.raises(OSError, match="push='me/small' failed .*again: cfsp-push"):
        push(saved, "me/small")


@pytest.mark.parametrize("repo", ["small", "me/small/model", "me/sm all", "", None, 3, "me/"])
def test_a_name_that_is_none(hub, repo):
    with pytest.raises(ValueError, match=r"push=.*: expected owner/name"):
        check_push(repo, False)


def test_what_is_missing_is_said(hub, saved, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="private='yes': expected true or false"):
        check_push("me/small", "yes")
    (saved / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match=r"plan.json is not as it was saved"):
        push(saved, "me/small")
    with pytest.raises(ValueError, match="holds no model"):
        push(tmp_path, "me/small")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr("cfsp.checkpoints.push.get_token", lambda: None)
    with pytest.raises(ValueError, match="no token of the hub is here; expected HF_TOKEN, or hf auth login"):
        check_push("me/small", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        check_push("me/small", False)


@pytest.mark.slow
def test_a_run_pushes_what_it_saved_and_the_same_command_goes_on(hub, cfsp, tmp_path):
    arguments = ["evaluation=[]", "save=model", "push=me/small", "private=true"]
    hub.fail = "commit"
    code, out, err = cfsp(*arguments)
    assert code == 1
    assert (tmp_path / out.splitlines()[-1]).is_file()  # the record is made
    again = "the model is safe in model, and this pushes it again: cfsp-push model me/small --private"
    assert again in err[-1]
    assert len([*(tmp_path / "results" / "failures").iterdir()]) == 1
    hub.fail = None
    code, out, err = cfsp(*arguments)
    assert code == 0
    assert "read, not run" in err[0]
    assert err[-1] == f"cfsp: the model is at {hub.url}/me/small"
    assert hub.repos["me/small"] == files(tmp_path / "model")
    assert not [*(tmp_path / "results" / "failures").iterdir()]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["push=me/small"], "push='me/small' pushes what is saved; expected save=true or save=FOLDER"),
        (["save=true", "push=small"], "push='small': expected owner/name"),
        (["save=true", "push=me/small", "-m", "sparsity=0.2,0.3"], "is one repository for all jobs"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_the_work(hub, cfsp, tmp_path, arguments, message):
    code, _, err = cfsp(*arguments)
    assert code == 1
    assert message in err[-1]
    assert not (tmp_path / "results" / "records").exists()
    assert not hub.asked
