// The book of pages against a model that keeps the tokens themselves.
//
// Both get the same random calls. The model writes a number for each token to where the book says that its page is, as a pool would, and
// makes the copies that the book asks for: afterwards each sequence has to find its own numbers there.
#include "cache/pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "support/random.h"

namespace ringattn::test {
namespace {

using Random = std::mt19937_64;
using Tokens = std::vector<std::int64_t>;  // a number for each

std::int64_t draw(Random& random, std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
}

class Model {
 public:
  Model(int world_size, std::int64_t page_tokens, std::int64_t num_pages) : book(world_size, page_tokens, num_pages) {}

  std::int64_t any(Random& random) const {
    auto it = sequences.begin();
    std::advance(it, draw(random, 0, std::ssize(sequences) - 1));
    return it->first;
  }

  void append(const std::vector<PageBook::Tokens>& all) {
    for (const PageBook::Copy& copy : book.extend(all))
      for (std::int64_t n = 0; n < copy.tokens; ++n) {
        EXPECT_EQ(copy.from.rank, copy.to.rank);
        at(copy.to, n) = at(copy.from, n);
      }
    for (const auto& [id, position, count] : all)
      for (std::int64_t n = position; n < position + count; ++n) {
        Tokens& tokens = sequences[id];
        if (n == std::ssize(tokens)) tokens.push_back(++next_);
        const PageId page = book.sequence(id).pages[static_cast<std::size_t>(n / book.page_tokens())];
        at(page, n % book.page_tokens()) = tokens[static_cast<std::size_t>(n)];
      }
  }

  // Pages of each rank that those appends take, by counting who has what.
  std::vector<std::int64_t> pages_needed(const std::vector<PageBook::Tokens>& all) const {
    std::vector<std::int64_t> needed(static_cast<std::size_t>(book.world_size()));
    std::map<std::pair<std::int32_t, std::int32_t>, std::int64_t> users;
    for (const auto& [id, tokens] : sequences)
      for (const PageId& page : book.sequence(id).pages) ++users[{page.rank, page.index}];
    for (const auto& [id, position, count] : all) {
      const Sequence& s = book.sequence(id);
      for (std::int64_t n = position; n < position + count; ++n) {
        const std::int64_t page = n / book.page_tokens();
        if (page >= std::ssize(s.pages)) {
          if (n % book.page_tokens() == 0) ++needed[static_cast<std::size_t>((s.base + page) % book.world_size())];
        } else if (n == position) {
          const PageId last = s.pages[static_cast<std::size_t>(page)];
          std::int64_t& left = users[{last.rank, last.index}];
          if (left > 1) --left, ++needed[static_cast<std::size_t>(last.rank)];
        }
      }
    }
    return needed;
  }

  void check() const {
    std::map<std::pair<std::int32_t, std::int32_t>, std::int32_t> users;
    ASSERT_EQ(book.sequences().size(), sequences.size());
    for (const auto& [id, tokens] : sequences) {
      const Sequence& s = book.sequence(id);
      ASSERT_EQ(s.length, std::ssize(tokens));
      ASSERT_EQ(std::ssize(s.pages), (s.length + book.page_tokens() - 1) / book.page_tokens());
      for (std::size_t i = 0; i < s.pages.size(); ++i) {
        ++users[{s.pages[i].rank, s.pages[i].index}];
        ASSERT_EQ(s.pages[i].rank, (s.base + static_cast<std::int64_t>(i)) % book.world_size());
      }
      for (std::int64_t n = 0; n < s.length; ++n) {
        const PageId page = s.pages[static_cast<std::size_t>(n / book.page_tokens())];
        ASSERT_EQ(memory_.at({page.rank, page.index, n % book.page_tokens()}), tokens[static_cast<std::size_t>(n)])
            << "token " << n << " of sequence " << id;
      }
    }
    std::vector<std::int64_t> used(static_cast<std::size_t>(book.world_size()));
    for (const auto& [page, count] : users) {
      ++used[static_cast<std::size_t>(page.first)];
      ASSERT_EQ(book.pool(page.first).uses(page.second), count);
    }
    for (int rank = 0; rank < book.world_size(); ++rank)
      ASSERT_EQ(book.pool(rank).size() - book.pool(rank).num_free(), used[static_cast<std::size_t>(rank)]);
  }

  PageBook book;
  std::map<std::int64_t, Tokens> sequences;

 private:
  std::int64_t& at(PageId page, std::int64_t token) { return memory_[{page.rank, page.index, token}]; }

  std::map<std::tuple<std::int32_t, std::int32_t, std::int64_t>, std::int64_t> memory_;
  std::int64_t next_ = 0;
};

std::vector<PageBook::Tokens> draw_appends(Random& random, const Model& model) {
  std::set<std::int64_t> chosen;
  for (std::int64_t n = draw(random, 1, 4); n > 0; --n) chosen.insert(model.any(random));
  std::vector<PageBook::Tokens> all;
  const std::int64_t most = draw(random, 0, 1) == 0 ? 1 : 3 * model.book.page_tokens();
  for (const std::int64_t id : chosen) all.push_back({id, model.book.sequence(id).length, draw(random, 0, most)});
  std::shuffle(all.begin(), all.end(), random);
  return all;
}

TEST(Pages, HoldWhatAModelHolds) {
  Random random(seed());
  int refused = 0, done = 0;
  for (int world = 0; world < sample(40); ++world) {
    const auto world_size = static_cast<int>(draw(random, 1, 5));
    Model model(world_size, draw(random, 1, 20), draw(random, 1, world % 2 == 0 ? 8 : 150));  // few, and it fills
    SCOPED_TRACE("world " + std::to_string(world));
    for (int n = 0; n < 250; ++n) {
      const std::int64_t what = model.sequences.empty() ? 0 : draw(random, 0, 9);
      if (what == 0) {
        model.sequences[model.book.create()];
      } else if (what == 1) {
        const std::int64_t id = model.any(random);
        model.sequences[model.book.fork(id)] = model.sequences[id];
      } else if (what == 2) {
        const std::int64_t id = model.any(random);
        Tokens& tokens = model.sequences[id];
        tokens.resize(static_cast<std::size_t>(draw(random, 0, std::ssize(tokens))));
        model.book.truncate(id, std::ssize(tokens));
      } else if (what == 3) {
        const std::int64_t id = model.any(random);
        model.book.free(id);
        model.sequences.erase(id);
        EXPECT_THROW(model.book.free(id), Error);
        EXPECT_THROW(model.book.fork(id), Error);
      } else {
        const std::vector<PageBook::Tokens> all = draw_appends(random, model);
        const std::vector<std::int64_t> needed = model.pages_needed(all);
        bool fits = true;
        for (int rank = 0; rank < world_size; ++rank)
          fits = fits && needed[static_cast<std::size_t>(rank)] <= model.book.pool(rank).num_free();
        if (fits) {
          std::vector<std::int64_t> free;
          for (int rank = 0; rank < world_size; ++rank) free.push_back(model.book.pool(rank).num_free());
          model.append(all);
          for (int rank = 0; rank < world_size; ++rank) {
            const auto r = static_cast<std::size_t>(rank);
            ASSERT_EQ(model.book.pool(rank).num_free(), free[r] - needed[r]);
          }
        } else {
          const std::int64_t history = model.book.history();
          try {
            model.book.extend(all);
            FAIL() << "it had no room";
          } catch (const Error& e) {
            ASSERT_EQ(e.status, RA_STATUS_OUT_OF_MEMORY) << e.message;
          }
          ASSERT_EQ(model.book.history(), history);
          ++refused;
        }
      }
      ++done;
      ASSERT_NO_FATAL_FAILURE(model.check());
    }
  }
  std::cout << done << " calls, " << refused << " without room\n";
  EXPECT_GT(refused, 0);
}

// Two books that saw the same calls are alike, and a call more or another number shows.
TEST(Pages, HaveAHistory) {
  PageBook a(2, 16, 8), b(2, 16, 8);
  const auto both = [&](auto&& f) { f(a), f(b); };
  both([](PageBook& book) { book.create(); });
  both([](PageBook& book) { book.extend(std::vector<PageBook::Tokens>{{0, 0, 20}}); });
  both([](PageBook& book) { book.truncate(0, 18); });
  both([](PageBook& book) { book.fork(0); });
  EXPECT_EQ(a.history(), b.history());
  EXPECT_THROW(a.extend(std::vector<PageBook::Tokens>{{0, 18, 1000}}), Error);
  EXPECT_EQ(a.history(), b.history());
  using Call = std::function<void(PageBook&)>;
  const auto append = [](std::int64_t id, std::int64_t count) -> Call {
    return [=](PageBook& book) { book.extend(std::vector<PageBook::Tokens>{{id, book.sequence(id).length, count}}); };
  };
  const auto move = [](std::vector<std::int32_t> former) -> Call { return [=](PageBook& book) { book.move(former); }; };
  const Call calls[] = {[](PageBook&) {},
                        [](PageBook& book) { book.create(); },
                        [](PageBook& book) { book.fork(0); },
                        [](PageBook& book) { book.fork(1); },
                        [](PageBook& book) { book.free(0); },
                        [](PageBook& book) { book.free(1); },
                        [](PageBook& book) { book.truncate(0, 16); },
                        [](PageBook& book) { book.truncate(0, 17); },
                        [](PageBook& book) { book.truncate(1, 17); },
                        append(0, 1),
                        append(0, 2),
                        append(1, 1),
                        move({0, 1}),
                        move({1, 0}),
                        move({0}),
                        move({1})};
  std::set<std::int64_t> histories;
  for (const Call& call : calls) {
    PageBook book = a;
    call(book);
    histories.insert(book.history());
  }
  EXPECT_EQ(histories.size(), std::size(calls));
  EXPECT_NE(PageBook(2, 16, 8).history(), PageBook(2, 16, 9).history());
}

// Sequences that grow in turn have stretches of their own, and one that is alone has one page behind the other.
TEST(Pages, LieSideBySide) {
  PageBook book(2, 16, 1000);
  const std::int64_t a = book.create(), b = book.create();
  for (int n = 0; n < 60; ++n)
    for (const std::int64_t id : {a, b}) book.extend(std::vector<PageBook::Tokens>{{id, book.sequence(id).length, 16}});
  for (const std::int64_t id : {a, b}) {
    const std::vector<PageId>& pages = book.sequence(id).pages;
    for (std::size_t i = 2; i < pages.size(); ++i) {
      EXPECT_EQ(pages[i].rank, pages[i - 2].rank);
      EXPECT_EQ(pages[i].index, pages[i - 2].index + 1);
    }
  }
}

// The last free page can be had, and no page is asked for that is not needed: of two that share one, the last to write keeps it.
TEST(Pages, FillToTheLast) {
  using All = std::vector<PageBook::Tokens>;
  PageBook whole(2, 16, 3);
  const std::int64_t only = whole.create();
  EXPECT_THROW(whole.extend(All{{only, 0, 97}}), Error);
  whole.extend(All{{only, 0, 96}});
  EXPECT_THROW(whole.extend(All{{only, 96, 1}}), Error);
  PageBook shared(1, 16, 2);
  const std::int64_t a = shared.create();
  shared.extend(All{{a, 0, 8}});
  const std::int64_t b = shared.fork(a);
  EXPECT_EQ(shared.extend(All{{a, 8, 1}, {b, 8, 1}}).size(), 1u);
  EXPECT_EQ(shared.pool(0).num_free(), 0);
  EXPECT_THROW(shared.extend(All{{shared.fork(a), 9, 1}}), Error);
}

// Also where a sequence has more tokens than all pages could take.
TEST(Pages, NoTokensNeedNoPage) {
  PageBook book(2, 16, 4);
  const std::int64_t id = book.create();
  book.extend(std::vector<PageBook::Tokens>{{id, 0, 8 * 16}});
  const std::int64_t other = book.create();
  book.move(std::vector<std::int32_t>{0});
  EXPECT_NO_THROW(book.extend(std::vector<PageBook::Tokens>{{id, 8 * 16, 0}, {other, 0, 0}}));
}

// What was on ranks that are gone is lost, and can be given again; the rest stays where it is.
TEST(Pages, MoveToFewerRanks) {
  Random random(seed());
  for (int n = 0; n < sample(200); ++n) {
    const auto world_size = static_cast<int>(draw(random, 2, 5));
    const std::int64_t page_tokens = draw(random, 1, 20);
    PageBook book(world_size, page_tokens, 200);
    for (int s = 0; s < 4; ++s) {
      const std::int64_t id = book.create();
      book.extend(std::vector<PageBook::Tokens>{{id, 0, draw(random, 0, 10 * page_tokens)}});
    }
    const std::int64_t fork = book.fork(1);
    std::vector<std::int32_t> former;
    for (std::int32_t rank = 0; rank < world_size; ++rank) former.push_back(rank);
    std::shuffle(former.begin(), former.end(), random);
    former.resize(static_cast<std::size_t>(draw(random, 1, world_size)));
    const std::map<std::int64_t, Sequence> before = book.sequences();
    book.move(former);
    ASSERT_EQ(book.world_size(), std::ssize(former));
    for (const auto& [id, was] : before) {
      const Sequence& is = book.sequence(id);
      ASSERT_EQ(is.length, was.length);
      for (std::size_t i = 0; i < was.pages.size(); ++i) {
        const auto rank = std::find(former.begin(), former.end(), was.pages[i].rank);
        ASSERT_EQ(is.pages[i].is_lost(), rank == former.end());
        if (is.pages[i].is_lost()) continue;
        ASSERT_EQ(is.pages[i].rank, rank - former.begin());
        ASSERT_EQ(is.pages[i].index, was.pages[i].index);
      }
      if (is.length % page_tokens != 0 && is.pages.back().is_lost()) {
        try {
          book.extend(std::vector<PageBook::Tokens>{{id, is.length, 1}});
          FAIL() << "its last tokens are lost";
        } catch (const Error& e) {
          ASSERT_EQ(e.status, RA_STATUS_INVALID_STATE) << e.message;
        }
      }
      for (std::int64_t from = 0; from <= is.length; ++from) {
        std::int64_t lost = from;
        while (lost < is.length && !is.pages[static_cast<std::size_t>(lost / page_tokens)].is_lost()) ++lost;
        ASSERT_EQ(book.find_lost(is, from), lost);
      }
      for (std::int64_t at = book.find_lost(is, 0); at < is.length; at = book.find_lost(is, at)) {
        const std::int64_t end = std::min(at + page_tokens, is.length);
        if (end - at > 1) {
          EXPECT_THROW(book.extend(std::vector<PageBook::Tokens>{{id, at, end - at - 1}}), Error);
        }
        book.extend(std::vector<PageBook::Tokens>{{id, at, end - at}});
        ASSERT_GE(book.find_lost(is, at), end);
      }
      EXPECT_THROW(book.extend(std::vector<PageBook::Tokens>{{id, -1, 1}}), Error);
    }
    std::int64_t used = 0;
    std::set<std::pair<std::int32_t, std::int32_t>> pages;
    for (const auto& [id, sequence] : book.sequences()) {
      for (const PageId& page : sequence.pages) pages.insert({page.rank, page.index});
      book.extend(std::vector<PageBook::Tokens>{{id, sequence.length, 0}});
    }
    for (int rank = 0; rank < book.world_size(); ++rank) used += book.pool(rank).size() - book.pool(rank).num_free();
    EXPECT_EQ(used, std::ssize(pages));
    for (const std::int64_t id : {std::int64_t{0}, std::int64_t{1}, std::int64_t{2}, std::int64_t{3}, fork})
      book.free(id);
    for (int rank = 0; rank < book.world_size(); ++rank) EXPECT_EQ(book.pool(rank).num_free(), 200);
  }
}

}  // namespace
}  // namespace ringattn::test
