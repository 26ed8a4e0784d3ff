#!/bin/sh
# maven.sh MVN FOLDER ARGUMENT...: runs Maven with FOLDER as its target folder. What it needs from the network it fetches at the first run
# with these arguments and this pom.xml; once that has succeeded, others do without the network.
set -eu
mvn=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
shift 2
stamp=$folder/fetched-$({ cat "$(dirname "$0")/pom.xml" && echo "$@"; } | cksum | cut -d ' ' -f 1)
if [ -e "$stamp" ]; then
  exec "$mvn" -B -q -o "-Dringattn.build=$folder" "$@"
fi
"$mvn" -B -q "-Dringattn.build=$folder" "$@"
touch "$stamp"
