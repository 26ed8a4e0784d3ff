# block LANGUAGE N: the Nth fenced block of a language in $readme.
block() {
  awk -v open="\`\`\`$1" -v wanted="$2" '
    $0 == "```" { inside = 0 }
    inside && n == wanted { print; found = 1 }
    $0 == open { inside = 1; ++n }
    END { exit !found }' "$readme" || {
    echo "$readme: has no block $1 number $2" >&2
    exit 1
  }
}
