"""Writes what the bindings generate from include/ringattn/ringattn.h, or with --check says what is not as it would be written.

    python3 bindings/generate [--check] [LANGUAGE ...]

A language is a module here with generate(header) -> {path below the root: text}. Whatever else lies in the folders that it fills, its
FOLDERS, is removed, or with --check reported.
"""

import argparse
import difflib
import importlib
import sys

import header as c

LANGUAGES = ("cpp", "rust", "java", "go")


def differences(path: str, old: str, new: str) -> str:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), path, f"{path}, generated", lineterm="", n=1)
    return "\n".join(list(lines)[:40])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="generate")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything would change")
    parser.add_argument("languages", nargs="*", metavar="LANGUAGE", help=f"{', '.join(LANGUAGES)}; default: all")
    options = parser.parse_args()
    for language in options.languages:
        if language not in LANGUAGES:
            parser.error(f"no language {language}; there are {', '.join(LANGUAGES)}")

    header = c.read()
    modules = {language: importlib.import_module(language) for language in options.languages or LANGUAGES}
    generated = {language: module.generate(header) for language, module in modules.items()}  # all, before anything is written
    stale = []
    for language, files in generated.items():
        module = modules[language]
        for folder in module.FOLDERS:
            for path in sorted((c.ROOT / folder).rglob("*")):
                if path.is_file() and str(path.relative_to(c.ROOT)) not in files:
                    stale.append(f"{path.relative_to(c.ROOT)} would not be written")
                    if not options.check:
                        path.unlink()
        for name, text in files.items():
            path = c.ROOT / name
            old = path.read_text() if path.exists() else ""
            if old == text:
                continue
            stale.append(differences(name, old, text))
            if not options.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        print(f"{language:5} {len(files):3} files")
    if options.check and stale:
        print("\n".join(stale), file=sys.stderr)
        print("\nnot as ./dev bindings writes them; run it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
