#include "launch.h"

#include <cstring>
#include <numeric>

namespace sparsegnn::ptx {
namespace {

constexpr size_t kMostShared = 227 * 1024;
constexpr uint64_t kMostJumps = 50'000'000;  // of a launch; a kernel that needs more does not end
constexpr unsigned char kPoison = 0xCB;

// Registers are kept from launch to launch.
std::vector<Warp>& warps(size_t count) {
  static std::vector<Warp> all;
  all.resize(count);
  return all;
}

std::string of(unsigned x, unsigned y, unsigned z) {
  return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}

}  // namespace

Launch::Launch(const Program& program, const std::vector<Argument>& arguments, dim3 grid, dim3 block,
               size_t shared_bytes)
    : program_(program),
      arguments_(arguments),
      grid_(grid),
      block_(block),
      shared_bytes_(shared_bytes),
      schedule_(emulator::machine().schedule),
      warps_(warps((block.x * block.y * block.z + kLanes - 1) / kLanes)),
      random_(emulator::machine().seed) {
  const unsigned threads = block.x * block.y * block.z;
  if (threads > program.most_threads)
    throw std::runtime_error(program.name + ": " + std::to_string(threads) + " threads a block, compiled for at most " +
                             std::to_string(program.most_threads));
  if (arguments.size() != program.parameters.size()) throw std::runtime_error(program.name + ": other parameters");
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].bytes != program.parameters[i].bytes)
      throw std::runtime_error(program.name + ": parameter " + std::to_string(i) + " has " +
                               std::to_string(program.parameters[i].bytes) + " bytes, got " +
                               std::to_string(arguments[i].bytes));
}

unsigned char* Launch::shared() {
  static std::vector<uint64_t> words(kMostShared / 8);
  return reinterpret_cast<unsigned char*>(words.data());
}

void Launch::run() {
  memory().order.begin_launch();
  memory().add(reinterpret_cast<uint64_t>(shared()), shared_bytes_, true);
  for (const Instruction& i : program_.code) i.last = nullptr;
  const unsigned threads = block_.x * block_.y * block_.z;
  for (size_t n = 0; n < warps_.size(); ++n) {
    Warp& w = warps_[n];
    const unsigned lanes = std::min<unsigned>(kLanes, threads - unsigned(n) * kLanes);
    w.launch = this, w.number = int(n);
    w.present = lanes == kLanes ? kAllLanes : (1u << lanes) - 1;
    w.registers.assign(program_.register_bytes, kPoison);
    prepare(w, false);
  }
  std::vector<uint64_t> order(uint64_t{grid_.x} * grid_.y * grid_.z);
  std::iota(order.begin(), order.end(), uint64_t{0});
  arrange(order);
  for (uint64_t number : order) run_block(number);
}

// Writes the registers that hold something from the begin: of the launch, or of the block.
void Launch::prepare(Warp& warp, bool of_block) {
  using What = Initial::What;
  for (const Initial& i : program_.initial) {
    if ((i.what == What::block) != of_block) continue;
    const auto axis = [&](auto v) { return i.value == 0 ? v.x : i.value == 1 ? v.y : v.z; };
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      const unsigned t = unsigned(warp.number) * kLanes + lane;
      const uint3 thread = {t % block_.x, t / block_.x % block_.y, t / block_.x / block_.y};
      uint64_t value = i.value;
      if (i.what == What::thread) value = axis(thread);
      if (i.what == What::block) value = axis(index_);
      if (i.what == What::threads) value = axis(block_);
      if (i.what == What::blocks) value = axis(grid_);
      if (i.what == What::lane) value = lane;
      if (i.what == What::parameter) value = reinterpret_cast<uint64_t>(arguments_[i.value].value);
      if (i.width == 0)
        warp.predicate(i.row) = uint32_t(value);
      else
        std::memcpy(warp.bytes(i.row) + lane * i.width, &value, i.width);
    }
  }
}

void Launch::run_block(uint64_t number) {
  index_ = {unsigned(number % grid_.x), unsigned(number / grid_.x % grid_.y), unsigned(number / grid_.x / grid_.y)};
  std::memset(shared(), kPoison, shared_bytes_);
  memory().order.begin_block(int(warps_.size()));
  std::vector<int> order(warps_.size());
  std::iota(order.begin(), order.end(), 0);
  arrange(order);
  for (Warp& w : warps_) {
    prepare(w, true);
    w.alive = w.present, w.used = 0;
    w.add({0, w.present, State::runs});
  }
  for (;;) {
    for (int n : order) run_warp(warps_[size_t(n)]);
    const bool ended = std::all_of(warps_.begin(), warps_.end(), [](const Warp& w) { return w.alive == 0; });
    if (ended) return;
    if (!release_block()) deadlock();
    if (schedule_ == Schedule::shuffled) arrange(order);
  }
}

// ---- a warp

void Launch::run_warp(Warp& warp) {
  memory().order.warp = warp.number;
  for (int k; (k = next_group(warp)) >= 0;) {
    join(warp, k, State::runs);
    run_group(warp, k);
  }
}

// The group that goes on: forward the one that is least far, so that parted lanes meet soonest; reversed the one that
// is farthest. -1 where all wait.
int Launch::next_group(Warp& warp) {
  int best = -1, seen = 0;
  each_bit(warp.used, [&](int k) {
    const Group& g = warp.groups[k];
    if (g.state != State::runs) return;
    ++seen;
    const bool better = best < 0 || (schedule_ == Schedule::forward    ? g.at < warp.groups[best].at
                                     : schedule_ == Schedule::reversed ? g.at > warp.groups[best].at
                                                                       : random_() % unsigned(seen) == 0);
    if (better) best = k;
  });
  return best;
}

// Takes in the groups of a state that are at the same instruction.
void Launch::join(Warp& warp, int k, State state) {
  Group& g = warp.groups[k];
  each_bit(warp.used & ~(1u << k), [&](int j) {
    if (warp.groups[j].at != g.at || warp.groups[j].state != state) return;
    g.lanes |= warp.groups[j].lanes;
    warp.drop(j);
  });
}

// Until the group waits, has ended, or comes to where it may meet others.
void Launch::run_group(Warp& warp, int k) {
  Group& g = warp.groups[k];
  do {
    const Instruction& i = program_.code[g.at];
    uint32_t lanes = g.lanes;
    if (i.guard != kNone) lanes &= i.negated_guard ? ~warp.predicate(i.guard) : warp.predicate(i.guard);
    if (i.kind == Kind::branch) {
      branch(warp, k, i, lanes);
      continue;
    }
    if (lanes == 0) {
      ++g.at;
      continue;
    }
    if (i.kind == Kind::exit) {
      leave(warp, k, lanes);
      if (!(warp.used >> k & 1)) return;
      continue;
    }
    if (i.kind != Kind::plain && lanes != g.lanes) part(warp, k, lanes);
    if (i.kind == Kind::block_barrier) {
      g.state = State::waits_for_block;
      return;
    }
    if (i.kind == Kind::collective) {
      if (!meet(warp, k, i)) return;
      continue;
    }
    warp.lanes = lanes;
    i.execute(warp, i);
    ++g.at;
  } while (!(warp.parted() && program_.code[g.at].begins));
}

void Launch::branch(Warp& warp, int k, const Instruction& i, uint32_t taken) {
  Group& g = warp.groups[k];
  if (++jumps_ > kMostJumps) fail(warp, i, __builtin_ctz(g.lanes), "the kernel does not end");
  const uint32_t others = g.lanes & ~taken;
  if (taken == 0) {
    ++g.at;
    return;
  }
  if (others != 0) warp.add({g.at + 1, others, State::runs});
  g.at = i.target, g.lanes = taken;
}

// Whoever waits for these lanes looks again.
void Launch::leave(Warp& warp, int k, uint32_t lanes) {
  Group& g = warp.groups[k];
  warp.alive &= ~lanes;
  g.lanes &= ~lanes;
  ++g.at;
  if (g.lanes == 0) warp.drop(k);
  each_bit(warp.used, [&](int j) {
    if (warp.groups[j].state == State::waits_for_warp) warp.groups[j].state = State::runs;
  });
}

// Lanes of the group other than these go on behind its instruction.
void Launch::part(Warp& warp, int k, uint32_t lanes) {
  Group& g = warp.groups[k];
  warp.add({g.at + 1, g.lanes & ~lanes, State::runs});
  g.lanes = lanes;
}

// Executes an instruction for those lanes of which all that their mask names have come; the others wait here.
bool Launch::meet(Warp& warp, int k, const Instruction& i) {
  join(warp, k, State::waits_for_warp);
  Group& g = warp.groups[k];
  uint32_t ready = 0;
  for (uint32_t left = g.lanes; left != 0;) {
    const int lane = __builtin_ctz(left);
    const auto mask_of = [&](int l) {
      return i.detail == kNone ? kAllLanes : get<uint32_t>(warp.bytes(i.operand[i.detail]), 4, l);
    };
    const uint32_t mask = mask_of(lane);
    uint32_t members = 0;
    each_bit(left, [&](int l) { members |= uint32_t(mask_of(l) == mask) << l; });
    if (members & ~mask) fail(warp, i, __builtin_ctz(members & ~mask), "the mask of a warp intrinsic lacks the caller");
    if (i.detail == kNone && warp.alive != kAllLanes)
      fail(warp, i, lane, "an instruction of the whole warp lacks lanes");
    if ((mask & warp.alive & ~members) == 0) ready |= members;
    left &= ~members;
  }
  if (ready == 0) {
    g.state = State::waits_for_warp;
    return false;
  }
  if (ready != g.lanes) {
    warp.add({g.at, g.lanes & ~ready, State::waits_for_warp});
    g.lanes = ready;
  }
  warp.lanes = ready;
  i.execute(warp, i);
  ++g.at;
  return true;
}

// ---- a block

bool Launch::release_block() {
  for (const Warp& w : warps_) {
    bool all = w.alive == w.present;
    each_bit(w.used, [&](int k) { all = all && w.groups[k].state == State::waits_for_block; });
    if (!all) return false;
  }
  for (Warp& w : warps_) each_bit(w.used, [&](int k) { w.groups[k].state = State::runs, ++w.groups[k].at; });
  memory().order.block_barrier();
  return true;
}

void Launch::deadlock() const {
  int block = 0, warp = 0, returned = 0;
  std::string where;
  for (const Warp& w : warps_) {
    returned += __builtin_popcount(w.present & ~w.alive);
    each_bit(w.used, [&](int k) {
      const Group& g = w.groups[k];
      (g.state == State::waits_for_block ? block : warp) += __builtin_popcount(g.lanes);
      where += "\n  warp " + std::to_string(w.number) + ", " + std::to_string(__builtin_popcount(g.lanes)) +
               " lane(s) at line " + std::to_string(program_.code[g.at].line) + ": " + program_.code[g.at].text;
    });
  }
  throw std::runtime_error("divergent barrier in " + block_name() + ": " + std::to_string(block) +
                           " thread(s) wait at __syncthreads, " + std::to_string(warp) + " at a warp intrinsic, " +
                           std::to_string(returned) + " have returned; " + program_.name + where);
}

// ---- for instructions

std::string Launch::block_name() const { return "block " + of(index_.x, index_.y, index_.z); }

void Launch::fail(const Warp& warp, const Instruction& i, int lane, const std::string& what) const {
  throw std::runtime_error(block_name() + ", thread " + std::to_string(warp.number * kLanes + lane) + ": " + what +
                           "; line " + std::to_string(i.line) + " of " + program_.name + ": " + i.text);
}

unsigned char* Launch::touch(const Warp& warp, const Instruction& i, int lane, Space space, uint64_t address,
                             uint32_t bytes, Access access) {
  Order& order = memory().order;
  order.lane = lane, order.line = i.line;
  if (space == Space::shared) address += reinterpret_cast<uint64_t>(shared());
  try {
    memory().touch(i.last, space, address, bytes, access);
  } catch (const std::exception& error) {
    fail(warp, i, lane, error.what());
  }
  return reinterpret_cast<unsigned char*>(address);
}

void Launch::warp_barrier(const Warp& warp, uint32_t lanes) {
  memory().order.warp = warp.number;
  memory().order.warp_barrier(lanes);
}

}  // namespace sparsegnn::ptx
