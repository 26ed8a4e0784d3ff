// Training, on one rank. All ranks have the same weights to the last bit, and go the same way: they begin with the same, and what they
// then compute comes of sums over ranks, which are the same bits on each. Nobody sends weights to anybody.
//
// A Record is what there is to know of a run, without times, so that the same run has the same record. It is loss.json, and it is the
// first line of a checkpoint, which goes on with the weights and both moments of Adam, as fp32 in the order of Weights::parts.
#pragma once

#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model.hpp"

/** A run: the same on every rank, and when it is resumed. */
struct Settings {
  Shape shape;
  int64_t steps = 200, warm_up = 20;
  double rate = 8e-3;
  int64_t held_out = 32768;  // bytes at the end of the text, to measure on
  int64_t measure_every = 10;
  uint64_t seed = 1;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Shape, context, batch, layers, d_model, heads, d_ff, window)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Settings, shape, steps, warm_up, rate, held_out, measure_every, seed)

struct Record {
  nlohmann::json settings;       // Settings, and the fingerprint of the text
  double baseline = 0;           // bits per byte of the held-out part for who knows how often a byte follows another
  std::vector<double> training;  // bits per byte of each step, before it
  std::vector<std::pair<int64_t, double>> validation;  // after so many steps, bits per byte of the held-out part
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Record, settings, baseline, training, validation)

/** Bits per byte of one text for a Markov chain of order 1 whose counts are those of another. */
inline double score_markov_chain(std::string_view counted, std::string_view scored) {
  const auto index = [](char c) { return static_cast<size_t>(static_cast<unsigned char>(c)); };
  std::vector<std::array<double, kBytes>> pairs(kBytes);
  for (auto& row : pairs) row.fill(0.01);  // so that nothing is impossible
  for (size_t i = 1; i < counted.size(); ++i) pairs[index(counted[i - 1])][index(counted[i])] += 1;
  double bits = 0;
  for (size_t i = 1; i < scored.size(); ++i) {
    const auto& row = pairs[index(scored[i - 1])];
    bits -= std::log2(row[index(scored[i])] / std::accumulate(row.begin(), row.end(), 0.0));
  }
  return bits / static_cast<double>(scored.size() - 1);
}

inline double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}

class Trainer {
 public:
  Trainer(const Settings& settings, std::string_view text, const Rank& rank)
      : s_(settings),
        rank_(rank),
        training_(text.substr(0, text.size() - static_cast<size_t>(s_.held_out + 1))),
        held_out_(text.substr(training_.size())),
        model_(s_.shape, rank.world_size, rank.rank, rank.context) {
    weights_.draw(s_.seed);
    record_.settings = s_;
    record_.settings["text"] = digits(fingerprint(text));
    record_.baseline = score_markov_chain(training_, held_out_);
  }

  const Record& record() const { return record_; }
  int64_t step() const { return static_cast<int64_t>(record_.training.size()); }
  size_t num_weights() const { return weights_.all.size(); }
  bool is_done() const { return step() >= s_.steps; }

  /** Throws if ranks are about to compute different things. */
  void agree() const {
    const nlohmann::json settings = record_.settings.flatten();
    for (const auto& [name, value] : settings.items()) rank_.agree(name, value.dump());
    rank_.agree("its weights", digits(fingerprint(as_text(weights_.all))));
  }

  /** One step of Adam (Kingma and Ba 2015), on sequences that the seed and the step's number choose. */
  void train() {
    std::mt19937_64 random(s_.seed ^ static_cast<uint64_t>(step()) << 32);
    std::vector<std::string_view> sequences;
    for (int64_t n = 0; n < s_.shape.batch; ++n)
      sequences.push_back(training_.substr(random() % (training_.size() - static_cast<size_t>(s_.shape.context))));
    const double loss = differentiate(sequences);
    require(std::isfinite(loss), "the loss of step {} is {}; --rate may be too high", step(), loss);

    const double length = std::sqrt(dot(gradient_.all, gradient_.all));
    const auto shrink = static_cast<float>(1 / std::max(1.0, length));  // to a length of 1 at most
    const double rate = rate_of(step()), t = static_cast<double>(step() + 1);
    const auto factor = static_cast<float>(rate / (1 - std::pow(kFirst, t)));
    const auto correction = static_cast<float>(1 / (1 - std::pow(kSecond, t)));
    for (size_t i = 0; i < first_.size(); ++i) {
      const float g = shrink * gradient_.all[i];
      first_[i] += (1 - kFirst) * (g - first_[i]);
      second_[i] += (1 - kSecond) * (g * g - second_[i]);
      weights_.all[i] -= factor * first_[i] / (std::sqrt(correction * second_[i]) + 1e-8F);
    }
    record_.training.push_back(loss / std::log(2.0));
  }

  /** Adds to the record how well the held-out part is guessed, sequence by sequence. */
  void measure() {
    double loss = 0;
    for (int64_t begin = 0; begin < s_.held_out; begin += s_.shape.tokens()) {
      std::vector<std::string_view> sequences;
      for (int64_t n = 0; n < s_.shape.batch; ++n)
        sequences.push_back(held_out_.substr(static_cast<size_t>(begin + n * s_.shape.context)));
      loss += rank_.sum(model_.forward(weights_, sequences));
    }
    record_.validation.push_back({step(), loss / static_cast<double>(s_.held_out) / std::log(2.0)});
  }

  /** Prints, for each weight, how far its gradient is from central differences along a random direction, relative to its length. */
  void check_gradient() {
    const std::vector<std::string_view> sequences(static_cast<size_t>(s_.shape.batch), training_);
    differentiate(sequences);
    std::mt19937_64 random(s_.seed);
    for (size_t p = 0; p < weights_.parts.size(); ++p) {
      const std::span<float> values = weights_.parts[p].values, gradient = gradient_.parts[p].values;
      const Floats old(values.begin(), values.end());
      Floats direction(old.size());
      for (float& x : direction) x = (random() & 1) != 0 ? 1.0F : -1.0F;
      const double slope = dot(gradient, direction), length = std::sqrt(dot(gradient, gradient));
      const auto step = static_cast<float>(3e-3 * std::sqrt(dot(old, old) / static_cast<double>(old.size())));
      const auto loss_at = [&](float by) {
        for (size_t i = 0; i < old.size(); ++i) values[i] = old[i] + by * direction[i];
        return rank_.sum(model_.forward(weights_, sequences)) / static_cast<double>(s_.shape.tokens());
      };
      const double difference = (loss_at(step) - loss_at(-step)) / (2 * double{step});
      std::copy(old.begin(), old.end(), values.begin());
      const double error = std::abs(difference - slope) / length;
      if (rank_.rank == 0) fmt::print("{:<16} {:.1e}\n", weights_.parts[p].name, error);
      require(error <= 1e-2, "the gradient of {} is wrong: {:.1e} is more than 0.01", weights_.parts[p].name, error);
    }
  }

  /** Written beside the old checkpoint, which it then replaces: whoever is killed meanwhile has a whole one. */
  void save(const std::filesystem::path& path) const {
    const std::filesystem::path unfinished = path.string() + ".unfinished";
    std::ofstream file(unfinished, std::ios::binary);
    file << nlohmann::json(record_) << '\n';
    for (const Floats* part : {&weights_.all, &first_, &second_}) file << as_text(*part);
    file.close();
    require(file.good(), "cannot write {}", unfinished.string());
    std::filesystem::rename(unfinished, path);
  }

  void load(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::string line;
    require(!std::getline(file, line).fail(), "cannot read {}", path.string());
    const auto record = nlohmann::json::parse(line).get<Record>();
    const nlohmann::json ours = record_.settings.flatten(), theirs = record.settings.flatten();
    for (const auto& [name, value] : ours.items())
      require(theirs.value(name, nlohmann::json()) == value, "{} is {}, but in {} {}", name, value.dump(),
              path.string(), theirs.value(name, nlohmann::json()).dump());
    for (Floats* part : {&weights_.all, &first_, &second_})
      file.read(reinterpret_cast<char*>(part->data()), static_cast<std::streamsize>(part->size() * sizeof(float)));
    require(file && file.peek() == std::ifstream::traits_type::eof(), "{} has another size than its weights",
            path.string());
    record_ = record;
  }

 private:
  static constexpr float kFirst = 0.9F, kSecond = 0.95F;

  static std::string digits(uint64_t number) { return fmt::format("{:016x}", number); }
  static std::string_view as_text(const Floats& numbers) {
    return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(float)};
  }

  /** The gradient of the mean loss over all ranks' tokens, which it returns in nats. */
  double differentiate(std::span<const std::string_view> sequences) {
    const auto tokens = static_cast<double>(s_.shape.tokens());
    const double loss = rank_.sum(model_.forward(weights_, sequences)) / tokens;
    model_.backward(weights_, static_cast<float>(1 / tokens), gradient_);
    rank_.all_reduce(gradient_.all);
    return loss;
  }

  /** Up in the warm-up, and down to a tenth along half a cosine. */
  double rate_of(int64_t step) const {
    if (step < s_.warm_up) return s_.rate * static_cast<double>(step + 1) / static_cast<double>(s_.warm_up);
    const double done = static_cast<double>(step - s_.warm_up) / static_cast<double>(s_.steps - s_.warm_up);
    return s_.rate * (0.55 + 0.45 * std::cos(done * 3.14159265358979));
  }

  const Settings s_;
  const Rank rank_;
  const std::string_view training_, held_out_;
  Model model_;
  Weights weights_{s_.shape}, gradient_{s_.shape};
  Floats first_ = Floats(weights_.all.size()), second_ = first_;  // moments
  Record record_;
};
