#!/bin/sh
# Packs a binding, and builds and runs the README's program in that language against the packages in a folder outside of this tree. The
# library is an installed one, but for Java, whose package brings it.
#
#   readme_language.sh c | rust | java | go
#
# In the environment: what bindings/package.sh needs; CC, JAVA and GO; PKG_CONFIG_PATH and LD_LIBRARY_PATH of the installed library.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
readme=$root/README.md
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
. "$here/readme_block.sh"
block text 2 >"$work/expected"
[ "$1" = c ] || sh "$root/bindings/package.sh" "$work/packages" "$1"
mkdir "$work/program"
cd "$work/program"

case $1 in
  c)
    block c 2 >program.c
    # shellcheck disable=SC2046
    "$CC" -std=c11 -Wall -Wextra -pedantic -Werror program.c -o program $(pkg-config --cflags --libs ringattn)
    ./program
    ;;
  rust)
    for crate in "$work"/packages/rust/*.crate; do tar -xzf "$crate" -C "$work"; done
    mkdir src
    block rust 1 >src/main.rs
    cat >Cargo.toml <<END
[package]
name = "program"
version = "0.1.0"
edition = "2021"
[dependencies]
ringattn = { path = "$(echo "$work"/ringattn-[0-9]*)" }
[patch.crates-io]
ringattn-sys = { path = "$(echo "$work"/ringattn-sys-[0-9]*)" }
END
    CARGO_TARGET_DIR="$work/target" "$CARGO" run --quiet
    ;;
  java)
    unset LD_LIBRARY_PATH
    block java 1 >Mean.java
    jars=$(find "$work/packages/maven" -name '*.jar' | sort)
    [ "$(echo "$jars" | wc -l)" = 2 ] || {
      echo "not two artifacts: $jars" >&2
      exit 1
    }
    jars=$(echo "$jars" | tr '\n' ':')
    "${JAVA}c" -Xlint:all -Werror -cp "$jars" -d classes Mean.java
    "$JAVA" -cp "${jars}classes" Mean
    ;;
  go)
    block go 1 >main.go
    export GOPROXY="file://$work/packages/go" GOSUMDB=off GOMODCACHE="$work/modules" GOTOOLCHAIN=local GOWORK=off GOFLAGS=
    "$GO" mod init program
    "$GO" get ringattn.dev/go/ringattn
    "$GO" run .
    ;;
esac >"$work/printed"
cat "$work/printed"
diff "$work/expected" "$work/printed"
