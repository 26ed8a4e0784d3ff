#!/bin/sh
# Builds and runs the C program of the README, and compares what it prints with what the README says that it prints.
#
#   readme_program.sh build_tree     against the library where it was built
#   readme_program.sh cmake          against the installed library, by find_package(ringattn)
#   readme_program.sh pkg_config     against the installed library, by pkg-config
#   readme_program.sh TGZ            against the archive that CPack makes, unpacked, by pkg-config
#   readme_program.sh DEB            against the Debian package that CPack makes, unpacked, by pkg-config
#
# build_tree also runs it with a call that one rank refuses: the other is let go.
#
# In the environment: BUILD (folder of the CMake build), CMAKE and CC. Exit status 77: pkg-config is not installed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
readme=$root/README.md
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags='-std=c11 -Wall -Wextra -pedantic -Werror -pthread'

. "$here/readme_block.sh"
block c 1 >"$work/program.c"
block text 1 >"$work/expected"

case $1 in
  build_tree)
    # shellcheck disable=SC2086
    "$CC" $flags -I"$root/include" "$work/program.c" -o "$work/program" -L"$BUILD/lib" -lringattn
    export LD_LIBRARY_PATH="$BUILD/lib"
    ;;
  cmake)
    "$CMAKE" --install "$BUILD" --prefix "$work/prefix"
    "$CMAKE" -S "$here/consumer" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_C_COMPILER="$CC" -DCMAKE_BUILD_TYPE=Release \
      -DCMAKE_C_FLAGS="$flags" -DPROGRAM="$work/program.c"
    "$CMAKE" --build "$work/build"
    cp "$work/build/program" "$work/program"
    ;;
  pkg_config | TGZ | DEB)
    command -v pkg-config >/dev/null || exit 77
    case $1 in
      pkg_config) "$CMAKE" --install "$BUILD" --prefix "$work/prefix" ;;
      TGZ)
        "$(dirname "$CMAKE")/cpack" -G TGZ --config "$BUILD/CPackConfig.cmake" -B "$work"
        mkdir "$work/prefix"
        tar -xzf "$work"/libringattn-*.tar.gz -C "$work/prefix"
        ;;
      DEB)
        command -v dpkg-deb >/dev/null || exit 77
        "$(dirname "$CMAKE")/cpack" -G DEB --config "$BUILD/CPackConfig.cmake" -B "$work"
        dpkg-deb --info "$work"/libringattn-*.deb
        dpkg-deb --extract "$work"/libringattn-*.deb "$work/prefix"
        ;;
    esac
    PKG_CONFIG_PATH=$(dirname "$(find "$work/prefix" -name ringattn.pc)")
    export PKG_CONFIG_PATH
    # shellcheck disable=SC2046,SC2086
    "$CC" $flags "$work/program.c" -o "$work/program" $(pkg-config --cflags --libs ringattn)
    LD_LIBRARY_PATH=$(pkg-config --variable=libdir ringattn)
    export LD_LIBRARY_PATH
    ;;
  *)
    echo "$0: build_tree, cmake or pkg_config, not $1" >&2
    exit 1
    ;;
esac

# A program asks for the minor version that it was built with.
soname=libringattn.so.$(awk '$2 == "RA_VERSION_MAJOR" { major = $3 } $2 == "RA_VERSION_MINOR" { print major "." $3 }' "$root/include/ringattn/ringattn.h")
readelf -d "$work/program" | grep -F "[$soname]" || {
  echo "the program does not need $soname" >&2
  exit 1
}

"$work/program" >"$work/printed"
cat "$work/printed"
diff "$work/expected" "$work/printed"

[ "$1" = build_tree ] || exit 0
sed 's/forward.q.data = q\[rank\]/forward.q.data = rank == 0 ? NULL : q[rank]/' "$work/program.c" >"$work/refused.c"
# shellcheck disable=SC2086
"$CC" $flags -I"$root/include" "$work/refused.c" -o "$work/refused" -L"$BUILD/lib" -lringattn
status=0
timeout 60 "$work/refused" 2>"$work/said" || status=$?
cat "$work/said"
[ "$status" = 1 ]
grep 'rank 0: INVALID_ARGUMENT: q.data is NULL' "$work/said"
grep 'rank 1: .*ABORTED: .* rank 0' "$work/said"  # in its call, or, where it comes late, as what the context failed with earlier
