"""Build the wheel and try it where only its core dependencies are installed.

Run by `make check-wheel`; prints one line per check and stops at the first that fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

HOSTS = ("learn2learn", "higher", "optuna", "torchvision", "matplotlib", "rich", "numba", "PIL")
"""What importing metaplastic must not import."""

IMPORT_WITHOUT_HOSTS = f"""
import sys
import metaplastic
loaded = [name for name in {HOSTS} if name in sys.modules]
sys.exit(f"import metaplastic loads {{loaded}}" if loaded else 0)
"""


def readme_example(name: str) -> str:
    """Return the python block of README.md that follows ``<!-- example: name -->``.

    Raises:
        LookupError: README.md has no such block.
    """
    pattern = rf"<!-- example: {re.escape(name)} -->\s*```python\n(.*?)```"
    found = re.search(pattern, (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise LookupError(f"README.md has no python block after <!-- example: {name} -->")
    return found[1]


def _check(claim: str, problem: str) -> None:
    print(f"{'FAILED' if problem else 'ok':<7} {claim}", flush=True)
    if problem:
        sys.exit(problem)


def _run(claim: str, *command: str | Path, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True)
    _check(claim, done.stdout + done.stderr if done.returncode else "")


def main() -> None:
    """Run the checks, in a temporary directory."""
    example = readme_example("quickstart")
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        _run(
            "the wheel builds",
            *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", temporary),
            cwd=ROOT,
        )
        (wheel,) = temporary.glob("*.whl")
        tagged = wheel.name.endswith("-py3-none-any.whl")
        _check("it is tagged py3-none-any", "" if tagged else wheel.name)
        files = zipfile.ZipFile(wheel).namelist()
        strays = [f for f in files if not re.match(r"metaplastic/.*\.py$|[^/]*\.dist-info/", f)]
        _check("it holds metaplastic/**.py and its metadata only", "\n".join(strays))

        venv.create(temporary / "env", with_pip=True)
        python = temporary / "env" / "bin" / "python"
        _run(
            "it installs into an empty environment, with its core dependencies",
            *(python, "-m", "pip", "install", "--quiet", wheel),
            cwd=temporary,
        )
        # -I: no PYTHONPATH, no current directory, hence no checkout.
        _run(
            "import metaplastic loads no host",
            *(python, "-I", "-c", IMPORT_WITHOUT_HOSTS),
            cwd=temporary,
        )
        _run("the README's quickstart runs", python, "-I", "-c", example, cwd=temporary)


if __name__ == "__main__":
    main()
