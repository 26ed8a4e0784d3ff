#!/bin/sh
# check.sh example | example_05 | service | generate | page: compiles an example in Java and holds it to what it promises.
#
# In the environment: JAVA, its compiler beside it; CLASSES, the binding's; LIBRARIES, the folder of libringattn_jni.so; FOLDER, to write to;
# for example also EXAMPLE_IN_C, the program to compare with; for page CHROMIUM, and for it and generate TRAIN, the program of example 06
# (page: or nothing).
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

# A small model of the text.
train() {
  "$TRAIN" "$folder/text" --output "$folder" --context 256 --batch 2 --d-model 32 --layers 2 --d-ff 64 --window 64 --held-out 512 \
    --steps 40 --measure-every 40 >"$folder/notes"
}

# The model in Java is that in C++; 200 texts at once; clients that leave; an end under load.
generate() {
  compile_service
  train
  java GeneratorTest "$folder/checkpoint" "$folder/text"
  java GenerateTest "$folder/checkpoint" "$folder/text"
}

# Somebody types.
page() {
  compile_service
  set -- "$CHROMIUM" "$folder/text" "$folder/page.png"
  if [ -n "${TRAIN:-}" ]; then
    train
    set -- "$@" "$folder/checkpoint"
  fi
  java PageTest "$@"
}

"$1"
