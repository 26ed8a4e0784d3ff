#!/usr/bin/env sh
# check.sh WHAT: one of the checks, or builds, below. RINGATTN_LIB_DIR or pkg-config must know the library, and the loader must find it.
set -eu
cd "$(dirname "$0")"
cargo=${CARGO:-cargo}
example=../../examples/01_long_context/rust
five=../../examples/05_multi_process
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0

test() { $cargo test --quiet --workspace --features ringattn/half; }

clippy() {
  $cargo clippy --quiet --workspace --all-targets --features ringattn/half -- --deny warnings
  for manifest in $example/Cargo.toml $five/rust/Cargo.toml; do
    $cargo clippy --quiet --manifest-path $manifest -- --deny warnings
  done
}

format() {
  $cargo fmt --all --check
  $cargo fmt --check --manifest-path $example/Cargo.toml
  $cargo fmt --check --manifest-path $five/rust/Cargo.toml
}

# Without the library, as where documentation is published.
docs() {
  unset RINGATTN_LIB_DIR
  DOCS_RS=1 PKG_CONFIG_LIBDIR=/nowhere RUSTDOCFLAGS='--deny warnings' $cargo doc --quiet --workspace --no-deps \
    --features ringattn/half --target-dir "${CARGO_TARGET_DIR:-target}/docs"
}

# The packages build by themselves, each from its own files. Cargo takes a package that it once unpacked for the same one, in its version
# and folder, whatever is in it now (cargo 1.95): so a home that has unpacked none, which shares what was downloaded.
package() {
  home=${CARGO_HOME:-$HOME/.cargo}
  CARGO_HOME=$(dirname "$output")/home
  export CARGO_HOME
  mkdir -p "$CARGO_HOME/registry" "$home/registry/cache" "$home/registry/index"
  for shared in config.toml registry/cache registry/index; do ln -s "$home/$shared" "$CARGO_HOME/$shared"; done
  $cargo package --quiet --workspace --allow-dirty
  files=$($cargo package --quiet --package ringattn-sys --allow-dirty --list)
  for file in LICENSE README.md include/ringattn.h; do echo "$files" | grep -qx $file; done
}

# The library is found by either way, and else it is said which places were looked at, and what was found there.
find_library() {
  look() {
    env "$@" $cargo check --quiet --package ringattn-sys --target-dir "${CARGO_TARGET_DIR:-target}/find_library" >"$output" 2>&1
  }
  fails_with() { # each line of the input is in the output
    if look "$@"; then return 1; fi
    while read -r line; do
      if ! grep -qF "$line" "$output"; then
        echo "no '$line' in:"
        cat "$output"
        return 1
      fi
    done
  }
  look -u RINGATTN_LIB_DIR
  look -u PKG_CONFIG_PATH PKG_CONFIG_LIBDIR=/nowhere
  fails_with -u RINGATTN_LIB_DIR -u PKG_CONFIG_PATH PKG_CONFIG_LIBDIR=/nowhere <<END
RINGATTN_LIB_DIR: not set
PKG_CONFIG_LIBDIR=/nowhere
END
  fails_with RINGATTN_LIB_DIR=/nowhere <<END
RINGATTN_LIB_DIR: /nowhere, which has no libringattn.so
pkg-config: not asked
END
  printf 'Name: ringattn\nDescription: of later\nVersion: 99.0.0\n' >"$(dirname "$output")/ringattn.pc"
  fails_with -u RINGATTN_LIB_DIR PKG_CONFIG_PATH="$(dirname "$output")" <<END
'99.0.0'
END
}

# The example's own test; and it prints the table that the one in C prints (EXAMPLE_IN_C), but for the times.
example() {
  $cargo test --quiet --release --manifest-path $example/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-$example/target}"
  $cargo build --quiet --release --manifest-path $example/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-$example/target}"
  cat ../../README.md ../../CONTRIBUTING.md >"$output"
  table() {
    "$@" "$output" --length 20000 --ranks 3 --sharding striped --output "$output.json" 2>"$output.notes" |
      awk 'NF == 12 { $5 = $6 = "time" } { print }'
  }
  table "$EXAMPLE_IN_C" >"$output.c"
  table "${CARGO_TARGET_DIR:-$example/target}/release/example_01_long_context" >"$output.rust"
  grep -c time "$output.c" | grep -qx 3
  diff "$output.c" "$output.rust"
  python3 -c 'import json, sys; assert len(json.load(open(sys.argv[1]))["rows"]) == 3' "$output.json/context.json"
}

# Three processes, and the same where one of them is killed.
example_05() {
  $cargo build --quiet --release --manifest-path $five/rust/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-$five/rust/target}"
  program=${CARGO_TARGET_DIR:-$five/rust/target}/release/example_05_multi_process
  $five/run.sh --ranks 3 "$program"
  ../../tests/package/kill_a_rank.sh 1 "$program"
}

# The program of ./dev bench bindings.
call() { $cargo build --quiet --release --package ringattn --example call; }

output=$(mktemp -d)/output
trap 'rm -rf "$(dirname "$output")"' EXIT
"$1"
