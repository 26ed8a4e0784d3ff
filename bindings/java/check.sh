#!/bin/sh
# check.sh example | example_05 | service | page: compiles an example in Java and holds it to what it promises.
#
# In the environment: JAVA, its compiler beside it; CLASSES, the binding's; LIBRARIES, the folder of libringattn_jni.so; FOLDER, to write to;
# for example also EXAMPLE_IN_C, the program to compare with, and for page CHROMIUM.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
examples=$here/../../examples
one=$examples/01_long_context/java
three=$examples/03_jvm_service/java
five=$examples/05_multi_process
folder=$FOLDER/$1
rm -rf "$folder"
mkdir -p "$folder/classes"
compile() { "${JAVA}c" -Xlint:all -Werror -cp "$CLASSES" -d "$folder/classes" "$@"; }
java() { "$JAVA" "-Ddev.ringattn.libraries=$LIBRARIES" -cp "$CLASSES:$folder/classes" "$@"; }
cat "$here/../../README.md" "$here/../../CONTRIBUTING.md" >"$folder/text"

# The table is that of the program in C, but for the times.
example() {
  compile "$one"/*.java
  table() {
    "$@" "$folder/text" --length 20000 --ranks 3 --sharding striped --output "$folder/output" |
      awk 'NF == 12 { $5 = $6 = "time" } { print }'
  }
  table "$EXAMPLE_IN_C" >"$folder/c" 2>"$folder/notes"
  table java LongContext >"$folder/java" 2>>"$folder/notes"
  grep -c time "$folder/c" | grep -qx 3
  diff "$folder/c" "$folder/java"
  python3 -c 'import json, sys; assert len(json.load(open(sys.argv[1]))["rows"]) == 3' "$folder/output/context.json"
}

# Three processes, and the same where one of them is killed.
example_05() {
  compile "$five"/java/*.java
  set -- "$JAVA" "-Ddev.ringattn.libraries=$LIBRARIES" -cp "$CLASSES:$folder/classes" MultiProcess
  "$five/run.sh" --ranks 3 "$@"
  "$here/../../tests/package/kill_a_rank.sh" 1 "$@"
}

compile_service() {
  compile "$three"/*.java "$one/InductionHead.java"
  cp "$three/page.html" "$folder/classes"
}

# Groups that fail; 2,000 requests; a flood; an end under load.
service() {
  compile_service
  java PoolTest
  java LoadTest "$folder/text" 4096
}

# Somebody types.
page() {
  compile_service
  java PageTest "$CHROMIUM" "$folder/text" "$folder/page.png"
}

"$1"
