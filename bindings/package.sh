#!/bin/sh
# Makes what the bindings are published as: package.sh FOLDER LANGUAGE...
#
#   rust   FOLDER/rust/*.crate                the crates, as cargo package makes them
#   java   FOLDER/maven/dev/ringattn/...      a Maven repository with both artifacts: the classes, and this platform's libraries
#   go     FOLDER/go/ringattn.dev/go/...      what a GOPROXY serves
#
# In the environment: BUILD, the release build's folder, and CARGO, MVN and PYTHON where they are not on the PATH.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
for language; do
  case $language in
    rust)
      (cd "$here/rust" && CARGO_TARGET_DIR="$folder/rust/target" ${CARGO:-cargo} package --quiet --workspace --allow-dirty --no-verify)
      cp "$folder"/rust/target/package/*.crate "$folder/rust"
      rm -rf "$folder/rust/target"
      ;;
    java)
      "$here/java/maven.sh" "${MVN:-mvn}" "$folder/java" -f "$here/java/pom.xml" -DskipTests \
        "-Dringattn.natives=$BUILD/bindings/java/natives" deploy "-DaltDeploymentRepository=local::file://$folder/maven"
      rm -rf "$folder/java"
      ;;
    go) "${PYTHON:-python3}" "$here/go/package.py" "$folder/go" ;;
    *)
      echo "package.sh: rust, java or go, not $language" >&2
      exit 1
      ;;
  esac
done
