// plans: how the CUDA launchers would cut a problem, from their own functions; on the host, by way of the emulator.
//
// Every line of the input is a question, a name and whole numbers, and is answered by one line of JSON. Questions and
// their numbers: `questions` below. It compiles as long as the launchers' plans mean what the model takes them for.
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <sstream>

#include "cuda/block_linear.cuh"
#include "cuda/gat.cuh"
#include "cuda/maxk.cuh"
#include "cuda/maxk_spmm_backward.cuh"
#include "cuda/spmm_linear_backward.cuh"

using namespace sparsegnn::cuda;
using Numbers = std::vector<int64_t>;
using Answer = std::vector<std::pair<const char*, double>>;

namespace {

// rows, cols, edges, width, bytes gathered of a column, V, 1 if the launcher tells what table is gathered from
Answer segments(const Numbers& n) {
  RowSegments s{nullptr, n[0], n[3], n[2]};
  if (n[6]) s.table = n[1], s.bytes = n[4];
  const int lanes = segment_lanes(s, static_cast<int>(n[5]));
  return {{"lanes", lanes},
          {"groups", kSegmentThreads / lanes},
          {"threads", kSegmentThreads},
          {"slices", ceil_div(n[3] / n[5], lanes)},
          {"window", segment_window(n[2])}};
}

// batch, inputs, outputs, element size, entries
Answer linear(const Numbers& n) {
  const LinearPlan p = linear_plan(n[0], n[1], n[2], n[3], n[4]);
  const int64_t tile = linear_tile_bytes(p, n[3]), tiles = ceil_div(n[0], kWarp * p.per_lane);
  const bool staged = p.staged > 0 && linear_stages(p.per_lane, n[3]);
  return {{"per_lane", p.per_lane},
          {"together", linear_together(n[3])},
          {"outputs", kLinearOutputs},
          {"chunks", p.chunks},
          {"chunk", p.chunk},
          {"panels", ceil_div(n[2], p.panel)},
          {"staged", staged},
          {"threads", kLinearThreads},
          {"blocks", (staged ? min(tiles, p.staged) : tiles) * ceil_div(n[2], p.panel)},
          {"shared",
           linear_outputs_bytes(p.per_lane, n[3]) + tile + (staged ? linear_packed_bytes(p, n[2], n[4], n[3]) : 0)}};
}

// batch, inputs, outputs, element size
Answer dvalues(const Numbers& n) {
  const LinearBackwardPlan p = linear_backward_plan(n[0], n[1], n[2], n[3]);
  return {{"per_lane", p.per_lane},    {"chunks", p.chunks}, {"panels", p.panels},
          {"spans", p.spans},          {"span", p.span},     {"chunk", p.chunk},
          {"threads", kLinearThreads}, {"panel", p.panel},   {"shared", double(p.chunk + p.panel) * p.stride * n[3]}};
}

// rows, inputs, outputs, element size
Answer fused(const Numbers& n) {
  const LinearPlan p = spmm_linear_plan(n[0], n[1], n[2], n[3]);
  return {{"per_lane", p.per_lane},
          {"threads", kLinearThreads},
          {"shared", gather_bytes(p.per_lane, n[3]) + double(p.chunk + 1) * p.stride * n[3]}};
}

// nodes, inputs, outputs, element size
Answer fused_backward(const Numbers& n) {
  const SpmmLinearBackwardPlan p = spmm_linear_backward_plan(n[0], n[1], n[2], n[3]);
  return {{"per_lane", p.product.per_lane},
          {"threads", kLinearThreads},
          {"panels", p.weights.panels},
          {"spans", p.weights.spans},
          {"shared", p.before + double(p.product.chunk + 1) * p.product.stride * n[3]}};
}

// heads, columns of a head, V, lanes of a group: edges that the lanes of a warp's group score at once
Answer team(const Numbers& n) {
  GatScores<float> scores{};
  scores.heads = n[0], scores.width = n[1];
  return {{"edges", GatTeam(scores, 0, static_cast<int>(n[2]), min(static_cast<int>(n[3]), kWarp)).edges}};
}

// rows, edges, width, k: fp32 and 8-bit columns
Answer maxk_spmm(const Numbers& n) {
  MaxkSpmmArguments<float, uint8_t> a{};
  a.rows = n[0], a.edges = n[1], a.width = n[2], a.k = n[3];
  const MaxkLayout l = maxk_layout(a);
  MaxkSpmmBackwardArguments<float, uint8_t> back{};
  back.forward = a, back.cols = n[0];
  return {{"vector", l.vector},
          {"lanes", l.lanes},
          {"copies", l.copies},
          {"threads", kMaxkSpmmThreads},
          {"warps", kMaxkSpmmWarps},
          {"window", maxk_spmm_window(n[1])},
          {"shared", double(kMaxkSpmmWarps) * l.words * sizeof(float)},
          {"reads_rows", maxk_reads_rows(back)}};
}

// batch, inputs, outputs, height of a block, element size, 1 if TF32 is allowed
Answer block(const Numbers& n) {
  const BlockPlan p = choose_block_linear(n[0], n[1], n[2], static_cast<int>(n[3]), n[4], n[5] != 0);
  const int samples = block_samples(p.mma, n[4]);
  return {{"mma", p.mma},
          {"samples", samples},
          {"chunks", p.chunks},
          {"rows", block_rows(p.mma, static_cast<int>(n[3]), n[4])},
          {"threads", kBlockThreads},
          {"panels", ceil_div(n[2], p.panel)},
          {"shared", double(tile_rows(p.chunk)) * block_stride(p.mma, n[4]) * n[4]}};
}

// width of a row of fp32: columns of a lane of spmm, and the width that it is run at
Answer vectors(const Numbers& n) {
  int V = 0;
  const auto take = [&](auto v) {
    V = decltype(v)::value;
    return cudaSuccess;
  };
  with_vectors<float>(take, n[0], static_cast<const float*>(nullptr));
  return {{"V", V}, {"padded", n[0]}};
}

// columns, kept, rows of normal numbers, rows that a warp has at once and columns of a lane: rounds in which it
// brackets their thresholds, and the most columns that stay of those of a lane; on average
Answer rounds(const Numbers& n) {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  const int columns = static_cast<int>(n[0]), kept = static_cast<int>(n[1]);
  double total = 0, stay = 0, longest = 0, most = 0;
  for (int64_t r = 0; r < n[2]; ++r) {
    if (r % n[3] == 0) longest = most = 0;
    std::vector<float> x(n[0]);
    float sum = 0, square = 0;
    for (float& v : x) v = normal(random), sum += v, square += v * v;
    const float mean = sum / float(n[0]), variance = square / float(n[0]) - mean * mean;
    MaxkBracket<float> bracket(mean, std::sqrt(variance), maxk_guess(columns, kept), columns, kept);
    int round = 0;
    for (; bracket.open(); ++round) {
      const auto key = bracket.next<true>(round);
      const float least = from_maxk_key<float>(key);
      int count = 0;
      for (const float v : x) count += v >= least;
      bracket.put(key, least, float(count), round);
    }
    longest = std::max<double>(longest, round);
    for (int64_t lane = 0; lane < n[0]; lane += n[4]) {
      int own = 0;
      for (int64_t i = lane; i < std::min(lane + n[4], n[0]); ++i) own += to_maxk_key(x[i]) >= bracket.low;
      most = std::max<double>(most, own);
    }
    if ((r + 1) % n[3] == 0) total += longest, stay += most;
  }
  const double times = double(n[2] / n[3]);
  return {{"rounds", total / times}, {"stay", stay / times}};
}

const std::map<std::string, std::pair<size_t, std::function<Answer(const Numbers&)>>> questions = {
    {"segments", {7, segments}},   {"linear", {5, linear}}, {"dvalues", {4, dvalues}},
    {"fused", {4, fused}},         {"block", {6, block}},   {"fused_backward", {4, fused_backward}},
    {"maxk_spmm", {4, maxk_spmm}}, {"rounds", {5, rounds}}, {"vectors", {1, vectors}},
    {"team", {4, team}},
};

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    const Numbers numbers{std::istream_iterator<int64_t>(words), {}};
    const auto found = questions.find(name);
    if (found == questions.end() || numbers.size() != found->second.first) {
      std::cerr << "plans: unknown question: " << line << "\n";
      return 2;
    }
    std::string text;
    for (const auto& [key, value] : found->second.second(numbers)) {
      std::ostringstream number;
      number.precision(17);
      number << value;
      text += (text.empty() ? "{\"" : ", \"") + std::string(key) + "\": " + number.str();
    }
    std::cout << text << "}" << std::endl;
  }
}
