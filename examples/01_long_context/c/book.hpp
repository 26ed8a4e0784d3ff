// The text that the head reads.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include "induction_head.hpp"

/** The whole file; bytes outside the alphabet become its last letter. */
inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto outside = [](char c) { return static_cast<unsigned char>(c) >= kAlphabet; };
  if (const auto count = std::ranges::count_if(text, outside); count > 0) {
    fmt::print(stderr, "note: {} bytes of {} are not ASCII and count as one and the same letter\n", count, path);
  }
  std::ranges::replace_if(text, outside, static_cast<char>(kAlphabet - 1));
  return text;
}
