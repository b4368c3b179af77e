"""The command line: mistyped flags, the sections and the speed of the help, the completion of shells."""

import json
import subprocess
import sys

import pytest
from textmill_launcher.__main__ import main
from textmill_launcher.options import Group
from textmill_launcher.settings import ALL_OPTIONS, load_settings, serve_parser


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--num-shards", "2"], "there is no flag --num-shards: did you mean --num-shard?"),
        (["--max-inptu-tokens=5"], "there is no flag --max-inptu-tokens: did you mean --max-input-tokens?"),
        (["--max-input-lenght", "5"], "did you mean --max-input-length?"),
        (["--zzz"], "there is no flag --zzz (launcher"),
        (["org/model"], "unexpected argument 'org/model' (launcher"),
        (["--port"], "expected one argument"),
    ],
)
def test_mistyped_flag_is_answered_with_the_nearest(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings(argv, {})
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1


def test_help_has_a_section_for_each_group_and_each_flag_stands_in_one() -> None:
    shown = serve_parser().format_help()
    sections = {group: shown.partition(f"\n{group.value}:\n")[2].partition("\n\n")[0] for group in Group}
    assert all(sections.values())
    for option in ALL_OPTIONS:
        if option.has_flag:
            assert f"  {option.flag}" in sections[option.group] or f", {option.flag}" in sections[option.group]


@pytest.mark.parametrize(
    ("word", "hint"), [("pln", "did you mean plan?"), ("docter", "did you mean doctor?"), ("download!", "download?")]
)
def test_mistyped_command_is_answered_with_the_nearest(
    word: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word])
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "usage: launcher [serve|plan|doctor|download] [flags]" in shown
    for words in ("plan: say what a model takes of memory", "doctor: say whether", "download: fetch a model"):
        assert words in shown


def test_help_shows_the_defaults_of_the_children() -> None:
    shown = " ".join(serve_parser().format_help().split())
    assert "requests held at once; more get 429 (default: 128)" in shown
    assert "port to listen on (default: 3000)" in shown


MODULES_OF_HELP = """
import json, sys
from textmill_launcher.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("MODULES " + json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["--print-config"]])
def test_help_loads_nothing_that_takes_long(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MODULES_OF_HELP, *argv], capture_output=True, text=True, timeout=60, check=True
    )
    modules = json.loads(done.stdout.rpartition("MODULES ")[2])
    assert "textmill_launcher.settings" in modules
    slow = {"grpc", "httpx", "huggingface_hub", "google", "asyncio", "shtab", "tomllib", "torch"}
    assert slow & set(modules) == set()


@pytest.mark.parametrize(
    ("shell", "line"),
    [("bash", "-F _shtab_launcher launcher"), ("zsh", "#compdef launcher"), ("fish", "complete -c launcher")],
)
def test_completion_of_a_shell_knows_flags_and_their_words(
    shell: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert line in script
    for word in ("max-input-tokens", "served-model-name", "bfloat16"):
        assert word in script


def test_bash_completes_a_flag() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "textmill_launcher", "--print-completion", "bash"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    probe = done.stdout + "\nCOMP_WORDS=(launcher --max-inp); COMP_CWORD=1; _shtab_launcher; echo ${COMPREPLY[@]}"
    shown = subprocess.run(["bash", "-c", probe], capture_output=True, text=True, timeout=30, check=True)
    assert set(shown.stdout.split()) == {"--max-input-tokens", "--max-input-length"}
