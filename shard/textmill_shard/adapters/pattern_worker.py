"""A process of its own that matches a stranger's regular expressions, so that an expression without end can be killed.

The file is run as a script and imports the standard library alone. It writes a line when it has started, reads one JSON
object `{"patterns": [...], "names": [...]}`, and answers with a line: `{"found": [...]}`, for each name the number of
the first pattern that fits as PEFT lets patterns fit, or null; or `{"bad": number, "reason": text}` for a pattern that
is no regular expression.
"""

import json
import re
import resource
import sys

MEMORY_BYTES = 1 << 29


def match(patterns: list[str], names: list[str]) -> dict[str, object]:
    """Return the answer to one question."""
    compiled = []
    for number, pattern in enumerate(patterns):
        try:
            compiled.append(re.compile(rf"(.*\.)?({pattern})$"))
        except (re.error, RecursionError, OverflowError) as error:
            return {"bad": number, "reason": str(error)}
    found = [next((number for number, one in enumerate(compiled) if one.match(name)), None) for name in names]
    return {"found": found}


def main() -> None:
    """Answer one question under a limit of memory."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    question = json.loads(sys.stdin.readline())
    sys.stdout.write(json.dumps(match(question["patterns"], question["names"])) + "\n")


if __name__ == "__main__":
    main()
