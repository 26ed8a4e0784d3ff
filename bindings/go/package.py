"""Makes the Go module as a file:// GOPROXY serves it: package.py FOLDER

    FOLDER/ringattn.dev/go/ringattn/@v/{list, vX.Y.Z.info, vX.Y.Z.mod, vX.Y.Z.zip}

    GOPROXY=file://FOLDER GOSUMDB=off go get ringattn.dev/go/ringattn@vX.Y.Z

The version is the library's. The zip has the layout of https://go.dev/ref/mod#zip-files, and the same bytes every time.
"""

import json
import pathlib
import re
import sys
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "bindings" / "go"


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    header = (ROOT / "include" / "ringattn" / "ringattn.h").read_text()
    version = "v" + ".".join(re.search(rf"define RA_VERSION_{part} (\d+)", header)[1] for part in ("MAJOR", "MINOR", "PATCH"))
    module = re.search(r"^module (\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)[1]

    files = {path.relative_to(HERE): path for path in HERE.rglob("*") if path.suffix == ".go" or path.name in ("go.mod", "README.md")}
    files[pathlib.Path("LICENSE")] = ROOT / "LICENSE"
    folder = pathlib.Path(sys.argv[1]) / module / "@v"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{version}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(f"{module}@{version}/{name}"), path.read_bytes(), zipfile.ZIP_DEFLATED)
    (folder / f"{version}.mod").write_bytes((HERE / "go.mod").read_bytes())
    (folder / f"{version}.info").write_text(json.dumps({"Version": version, "Time": "1980-01-01T00:00:00Z"}))
    (folder / "list").write_text(version + "\n")
    print(folder / f"{version}.zip")
    return 0


if __name__ == "__main__":
    sys.exit(main())
