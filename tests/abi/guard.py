"""Compares the ABI that a header declares with that of the released one: abidiff over two libraries of empty functions.

    guard.py --cc CC RELEASED HEADER     fails, with abidiff's report, where a program built with RELEASED would break
    guard.py --cc CC --self-test HEADER  HEADER against changed copies of itself: each that breaks programs is found, and none that does not

That the real library exports just what its header declares is another row's to tell (abi.exports). Exit status 77: no abidiff or Doxygen.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bindings" / "generate"))
import header  # noqa: E402: the one reader of the header

RULES = pathlib.Path(__file__).with_name("growth.abignore")

# What is changed in the header, as a regular expression and its replacement, and whether programs break.
CHANGES = {
    "a function is gone": (r"RA_API ra_status ra_check_support\([^;]*;", "", True),
    "a parameter is wider": (r"int32_t world_size, int32_t rank, int32_t side,\s+ra_error", "int64_t world_size, int32_t rank, int32_t side, ra_error", True),
    "a parameter more": (r"ra_get_shard_length\(", "ra_get_shard_length(int32_t more, ", True),
    "a function returns something else": (r"RA_API int32_t ra_get_version", "RA_API int64_t ra_get_version", True),
    "a constant has another number": (r"RA_STATUS_TIMEOUT = 5", "RA_STATUS_TIMEOUT = 50", True),
    "two constants are exchanged": (r"RA_MASK_FULL = 0, RA_MASK_CAUSAL = 1", "RA_MASK_CAUSAL = 0, RA_MASK_FULL = 1", True),
    "a field is gone": (r"  float softcap;", "", True),
    "a field has another type": (r"  float softcap;", "  double softcap;", True),
    "a field's typedef is another pointer": (r"typedef struct CUstream_st \*ra_stream;", "typedef const char *ra_stream;", True),
    "a field's typedef is a number": (r"typedef struct CUstream_st \*ra_stream;", "typedef int32_t ra_stream;", True),
    "a text is shorter": (r"char message\[512\]", "char message[256]", True),
    "a field comes in between": (r"  float softcap;", "  float between;\n  float softcap;", True),
    "a tensor grows, which others hold": (r"\} ra_tensor;", "  int64_t more;\n} ra_tensor;", True),
    "a field more at the end": (r"\} ra_attention_desc;", "  int64_t more;\n} ra_attention_desc;", False),
    "a constant more": (r"RA_SCHEDULE_PASS_Q = 5", "RA_SCHEDULE_PASS_Q = 5, RA_SCHEDULE_MORE = 6", False),
    "a function more": (r"RA_API int32_t ra_get_version", "RA_API int32_t ra_get_more(void);\nRA_API int32_t ra_get_version", False),
    "a reserved field gets a meaning": (r"int32_t reserved;", "int32_t meaning;", False),
    "a parameter's name": (r"int64_t num_problems, int64_t seed", "int64_t num_problems, int64_t start", False),
}


def make_library(cc: str, text: str, folder: pathlib.Path, name: str) -> pathlib.Path:
    """A library of everything that the header declares."""
    path = folder / f"{name}.h"
    path.write_text(text)
    model = header.read(path)
    lines = [f'#include "{name}.h"']
    for function in model.functions:
        parameters = ", ".join(f"{p.type} {p.name}" for p in function.parameters) or "void"
        lines.append(f"{function.returns} {function.name}({parameters}) {{ __builtin_trap(); }}")
    for enum in model.enums:  # part of the ABI also where no function takes them
        lines.append(f"RA_API void ra_type_{enum.name}(const {enum.name} *p);")
        lines.append(f"void ra_type_{enum.name}(const {enum.name} *p) {{ (void)p; }}")
    source, library = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text("\n".join(lines) + "\n")
    subprocess.run([cc, "-std=c11", "-g", "-O0", "-w", "-shared", "-fPIC", "-I", folder, source, "-o", library], check=True)
    return library


def compare_fields(cc: str, released: str, current: str, folder: pathlib.Path) -> str:
    """What the compiler says where a field of a released struct is gone, moved, or of another type. abidiff's rule for structs that grow
    is silent about all of it."""
    old = re.sub(r"\b(ra_|RA_|RINGATTN_)", r"released_\1", released)
    (folder / "old.h").write_text(old)
    (folder / "new.h").write_text(current)
    structs = header.read(folder / "released.h").structs
    current_fields = {s.name: s.fields for s in header.read(folder / "current.h").structs}
    lines = ["#include <stddef.h>", '#include "old.h"', '#include "new.h"']
    for struct in structs:
        for place, field in enumerate(struct.fields):
            names = [(struct.name, field.name), (f"released_{struct.name}", field.name)]
            if field.name == "reserved" and place < len(current_fields.get(struct.name, [])):
                names[0] = (struct.name, current_fields[struct.name][place].name)  # it may have got a meaning
            new, then = (f"(({name} *)0)->{of}" for name, of in names)
            places = (f"offsetof({name}, {of})" for name, of in names)
            same = [" == ".join(places), f"sizeof({new}) == sizeof({then})"]
            if field.type not in {s.name for s in structs}:  # one of these has another name there, and is compared by itself
                same.append(f"_Generic(&{new}, __typeof__(&{then}): 1, default: 0)")
            lines += [f'_Static_assert({condition}, "{struct.name}.{field.name}");' for condition in same]
    source = folder / "fields.c"
    source.write_text("\n".join(lines) + "\n")
    run = subprocess.run(
        [cc, "-std=gnu11", "-w", "-fsyntax-only", "-I", folder, source], capture_output=True, text=True, check=False
    )
    return run.stderr if run.returncode else ""


def compare(cc: str, released: str, current: str) -> tuple[bool, str]:
    """Whether programs break, and the report of what was found."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        old, new = (make_library(cc, text, folder, n) for text, n in ((released, "released"), (current, "current")))
        run = subprocess.run(
            ["abidiff", "--no-added-syms", "--suppressions", RULES, old, new], capture_output=True, text=True, check=False
        )
        if run.returncode & 3:
            sys.exit(f"abidiff: {run.stderr}")
        complaints = compare_fields(cc, released, current, folder)
    return run.returncode != 0 or bool(complaints), run.stdout + complaints


def self_test(cc: str, text: str) -> int:
    failed = 0
    for what, (pattern, replacement, breaks) in CHANGES.items():
        changed, count = re.subn(pattern, replacement, text, count=1)
        if count != 1:
            sys.exit(f"{what}: nothing in the header matches {pattern}")
        found, report = compare(cc, text, changed)
        failed += found != breaks
        print(f"{what:40} {'breaks' if found else 'compatible':12}{'' if found == breaks else 'WRONG'}")
        if found != breaks:
            print(report)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cc", required=True)
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("headers", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    for tool, package in (("abidiff", "abigail-tools"), ("doxygen", "doxygen")):
        if not shutil.which(tool):
            print(f"no {tool}: Debian package {package}")
            return 77
    texts = [path.read_text() for path in options.headers]
    if options.self_test:
        return self_test(options.cc, *texts)
    breaks, report = compare(options.cc, *texts)
    print(report or "compatible")
    return 1 if breaks else 0


if __name__ == "__main__":
    sys.exit(main())
