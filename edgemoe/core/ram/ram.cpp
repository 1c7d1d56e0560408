// Which experts are in RAM: reads, uses, and the way out. See ram.h.

#include "ram/ram.h"
#include "ram/places.h"

#include <algorithm>
#include <cmath>

namespace {
// What a use is still worth one token later.
constexpr float DECAY = 0.98f;
constexpr float MOST_UNIT = 1e20f;
// A prompt counts as so many tokens of a decode step, for all its tokens see the same conversation.
constexpr float PROMPT_TOKENS = 16;

bool absent(const em_ram_expert & x) { return x.state == em_place_state::ABSENT && !x.leaves; }

int64_t key_of(size_t layer, int32_t expert) { return int64_t(layer) << 32 | expert; }

em_ram_layer * layer_of(em_ram & ram, const em_layer_t & layer) {
    if (!ram.on) {
        return nullptr;
    }
    em_ram_layer & here = ram.layers[size_t(layer.index)];
    return here.ours ? &here : nullptr;
}

// Everything below needs the mutex.

// Its pages are still there.
void take_out(em_ram & ram, em_ram_layer & layer, int32_t expert) {
    em_ram_expert & x = layer.experts[size_t(expert)];
    x.state  = em_place_state::ABSENT;
    x.failed = false;
    layer.kept -= 1;
    ram.used -= layer.expert_bytes;
}

void remove(em_ram & ram, em_ram_layer & layer, int32_t expert) {
    take_out(ram, layer, expert);
    em_place_empty(layer, expert);
}

// The least worthy expert that nobody uses, or -1.
int32_t worst_of(const em_ram_layer & layer) {
    int32_t worst = -1;
    for (int32_t i = 0; i < int32_t(layer.experts.size()); ++i) {
        const em_ram_expert & x = layer.experts[size_t(i)];
        const bool free = x.state == em_place_state::PRESENT && !x.held && !x.wanted;
        worst           = free && (worst < 0 || x.heat < layer.experts[size_t(worst)].heat) ? i : worst;
    }
    return worst;
}

struct victim {
    em_ram_layer * layer  = nullptr;
    int32_t        expert = -1;
};

// Finds an expert to make room for one of this layer. `any`: a computation waits, and any layer may lose an expert.
victim victim_for(em_ram & ram, em_ram_layer & layer, bool any) {
    const auto in = [](em_ram_layer & from) { return victim{&from, worst_of(from)}; };
    for (em_ram_layer & other : ram.layers) {
        if (other.kept > other.quota) {
            if (const victim v = in(other); v.expert >= 0) {
                return v;
            }
        }
    }
    victim v = in(layer);
    for (size_t i = 0; i < ram.layers.size() && v.expert < 0 && any; ++i) {
        v = in(ram.layers[i]);
    }
    return v;
}

bool room_for(const em_ram & ram, const em_ram_layer & layer) { return ram.used + layer.expert_bytes <= ram.budget; }

// Begins to read an expert. Without room, it takes the place of another one. False: there is none, and nothing was begun. A
// computation that waits (NOW) gets its expert in any case. If everything is in use, it exceeds the budget for the moment.
bool start(em_ram & ram, em_ram_layer & layer, int32_t expert, em_urgency urgency) {
    em_ram_expert & x     = layer.experts[size_t(expert)];
    auto            reads = em_place_reads(layer, expert, key_of(layer.index, expert));
    victim          heir_of; // the first victim; its pages are not empty yet
    while (!room_for(ram, layer)) {
        const victim v = victim_for(ram, layer, urgency == em_urgency::NOW);
        if (v.expert < 0 && urgency != em_urgency::NOW) {
            if (heir_of.layer) {
                em_place_empty(*heir_of.layer, heir_of.expert);
            }
            return false;
        }
        if (v.expert < 0) {
            break;
        }
        take_out(ram, *v.layer, v.expert);
        if (ram.moves && !heir_of.layer) {
            heir_of = v;
        } else {
            em_place_empty(*v.layer, v.expert);
        }
    }
    if (heir_of.layer) {
        const int64_t key = key_of(heir_of.layer->index, heir_of.expert);
        heir_of.layer->experts[size_t(heir_of.expert)].leaves = uint8_t(em_place_inherit(reads, *heir_of.layer, heir_of.expert, key));
    }
    x.state = em_place_state::READING;
    layer.kept += 1;
    ram.used += layer.expert_bytes;
    x.parts = uint8_t(reads.size());
    em_disk_queue(ram.disk, reads, urgency);
    return true;
}

void shrink_heat(em_ram & ram) {
    for (em_ram_layer & layer : ram.layers) {
        for (em_ram_expert & x : layer.experts) {
            x.heat /= ram.unit;
        }
    }
    ram.unit = 1;
}
} // namespace

void em_ram_arrived(em_ram & ram, const em_disk_read & read, bool ok) {
    {
        std::lock_guard<std::mutex> lock(ram.mutex);
        if (read.from_key >= 0) {
            ram.layers[size_t(read.from_key >> 32)].experts[size_t(read.from_key & INT32_MAX)].leaves -= 1;
        }
        em_ram_layer &  layer  = ram.layers[size_t(read.key >> 32)];
        const int32_t   expert = int32_t(read.key & INT32_MAX);
        em_ram_expert & x      = layer.experts[size_t(expert)];
        x.failed               = x.failed || !ok;
        if (--x.parts == 0 && x.failed) {
            remove(ram, layer, expert);
        } else if (x.parts == 0) {
            x.state = em_place_state::PRESENT;
        }
    }
    ram.arrivals.notify_all();
}

void em_ram_resize(em_ram & ram, int64_t budget) {
    std::lock_guard<std::mutex> lock(ram.mutex);
    ram.budget = budget;
    em_share_budget(ram);
    for (em_ram_layer & layer : ram.layers) {
        for (int32_t worst; layer.kept > layer.quota && (worst = worst_of(layer)) >= 0;) {
            remove(ram, layer, worst);
        }
    }
}

void em_ram_seed(em_ram & ram, const float * heat) {
    std::lock_guard<std::mutex> lock(ram.mutex);
    for (em_ram_layer & layer : ram.layers) {
        for (em_ram_expert & x : layer.experts) {
            x.heat = *heat++;
        }
    }
}

void em_ram_fill(em_ram & ram) {
    for (size_t l = 0; l < ram.layers.size(); ++l) {
        em_layer_t &                from = *ram.model.layers[l];
        em_ram_layer &              layer = ram.layers[l];
        std::lock_guard<std::mutex> residents(from.residents.mutex);
        std::lock_guard<std::mutex> lock(ram.mutex);
        std::vector<int32_t>        cold;
        for (int32_t i = 0; layer.ours && i < int32_t(layer.experts.size()); ++i) {
            if (from.residents.state[size_t(i)] == EM_COLD && absent(layer.experts[size_t(i)])) {
                cold.push_back(i);
            }
        }
        std::stable_sort(cold.begin(), cold.end(), [&](int32_t a, int32_t b) {
            return layer.experts[size_t(a)].heat > layer.experts[size_t(b)].heat;
        });
        for (size_t i = 0; i < cold.size() && layer.kept < layer.quota && room_for(ram, layer); ++i) {
            start(ram, layer, cold[i], em_urgency::SPARE);
        }
    }
}

void em_ram_count(em_ram & ram, const em_layer_t & layer, const ggml_tensor * ids) {
    em_ram_layer * here = layer_of(ram, layer);
    if (!here) {
        return;
    }
    std::lock_guard<std::mutex> lock(ram.mutex);
    const float                 tokens = float(ids->ne[1]);
    if (layer.index == 0) {
        ram.unit *= std::pow(DECAY, -std::min(tokens, PROMPT_TOKENS));
        if (ram.unit > MOST_UNIT) {
            shrink_heat(ram);
        }
    }
    const float use = ram.unit * std::min(1.0f, PROMPT_TOKENS / tokens);
    em_each_pair(ids, [&](int32_t, int32_t, int32_t expert) {
        here->experts[size_t(expert)].heat += use;
    });
}

void em_ram_back(em_ram & ram, const em_layer_t & layer, int32_t expert) {
    if (em_ram_layer * here = layer_of(ram, layer)) {
        std::lock_guard<std::mutex> lock(ram.mutex);
        if (absent(here->experts[size_t(expert)])) {
            start(ram, *here, expert, em_urgency::SPARE);
        }
    }
}

void em_ram_drop(em_ram & ram, const em_layer_t & layer, int32_t expert) {
    if (em_ram_layer * here = layer_of(ram, layer)) {
        std::lock_guard<std::mutex> lock(ram.mutex);
        em_ram_expert &             x = here->experts[size_t(expert)];
        if (x.state == em_place_state::PRESENT && !x.held && !x.wanted) {
            remove(ram, *here, expert);
        }
    }
}

void em_ram_sizes(em_ram & ram, int64_t & used, int64_t & budget) {
    std::lock_guard<std::mutex> lock(ram.mutex);
    used = ram.used, budget = ram.budget;
}

bool em_ram_fits(em_ram & ram, const em_layer_t & layer, int32_t experts) {
    em_ram_layer * here = layer_of(ram, layer);
    if (!here) {
        return true;
    }
    std::lock_guard<std::mutex> lock(ram.mutex);
    return experts <= here->quota;
}

int32_t em_ram_most(em_ram & ram, const em_layer_t & layer) {
    const em_ram_layer * here = layer_of(ram, layer);
    if (!here) {
        return layer.experts;
    }
    std::lock_guard<std::mutex> lock(ram.mutex);
    return std::max(1, int32_t(ram.reserve / here->expert_bytes));
}

// ---- a use ----

em_ram_use::em_ram_use(em_ram & ram, const em_layer_t & layer, bool computes)
    : ram(ram), here(layer_of(ram, layer)), most(em_ram_most(ram, layer)), computes(computes) {}

em_ram_use::~em_ram_use() {
    if (!here) {
        return;
    }
    std::lock_guard<std::mutex> lock(ram.mutex);
    for (int32_t expert : marked) {
        here->experts[size_t(expert)].wanted = false;
    }
    let_go();
}

void em_ram_use::plan(std::vector<em_pair> & pairs, int64_t from, int64_t to) {
    if (!here) {
        return;
    }
    std::lock_guard<std::mutex> lock(ram.mutex);
    std::stable_partition(pairs.begin() + from, pairs.begin() + to, [&](const em_pair & p) {
        return here->experts[size_t(p.expert)].state == em_place_state::PRESENT;
    });
    for (int64_t i = to; i-- > from;) {
        const int32_t expert = pairs[size_t(i)].expert;
        if (here->experts[size_t(expert)].state == em_place_state::PRESENT) {
            want(expert);
        } else if (planned.empty() || planned.back() != expert) {
            planned.push_back(expert);
        }
    }
}

void em_ram_use::want(int32_t expert) {
    here->experts[size_t(expert)].wanted = true;
    marked.push_back(expert);
}

int64_t em_ram_use::end_of(const std::vector<em_pair> & pairs, int64_t from, int64_t to) const {
    int32_t experts = 0;
    for (int64_t i = from; here && i < to; ++i) {
        experts += i == from || pairs[size_t(i)].expert != pairs[size_t(i - 1)].expert;
        if (experts > most) {
            return i;
        }
    }
    return to;
}

// Reads of what comes next, as far as there is room. Needs the mutex.
void em_ram_use::read_on() {
    while (!planned.empty()) {
        em_ram_expert & x = here->experts[size_t(planned.back())];
        if (absent(x) && !x.held) {
            if (!start(ram, *here, planned.back(), em_urgency::SOON)) {
                return;
            }
            ram.count.missed_bytes += here->expert_bytes;
            want(planned.back());
        }
        planned.pop_back();
    }
}

bool em_ram_use::need(const em_pair * pairs, int64_t n) {
    if (!here) {
        return true;
    }
    std::unique_lock<std::mutex> lock(ram.mutex);
    const size_t                 first = held.size();
    int64_t                      bytes = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (i > 0 && pairs[i].expert == pairs[i - 1].expert) {
            continue;
        }
        em_ram_expert & x = here->experts[size_t(pairs[i].expert)];
        held.push_back(pairs[i].expert);
        x.held += 1;
        x.wanted = false;
        ram.arrivals.wait(lock, [&] { return x.leaves == 0; });
        if (x.state == em_place_state::ABSENT) {
            ram.count.missed_bytes += here->expert_bytes;
            bytes += here->expert_bytes;
            start(ram, *here, pairs[i].expert, em_urgency::NOW);
        } else if (x.state == em_place_state::READING) {
            em_disk_hurry(ram.disk, key_of(here->index, pairs[i].expert));
        }
    }
    read_on();
    return wait(lock, first, bytes);
}

// Waits for the experts from `first` on. `bytes`: reads that begin now.
bool em_ram_use::wait(std::unique_lock<std::mutex> & lock, size_t first, int64_t bytes) {
    const auto is = [&](em_place_state state) {
        return std::any_of(held.begin() + long(first), held.end(), [&](int32_t e) { return here->experts[size_t(e)].state == state; });
    };
    if (!is(em_place_state::READING)) {
        return !is(em_place_state::ABSENT);
    }
    const int64_t began = em_now_ns();
    ram.arrivals.wait(lock, [&] { return !is(em_place_state::READING); });
    const int64_t took = em_now_ns() - began;
    ram.count.wait_ns += computes ? took : 0;
    if (bytes > 0 && computes) {
        em_note_rate(ram.rates.disk_ns_per_byte, double(took) / double(bytes), EM_SMOOTH_OFTEN);
    }
    return !is(em_place_state::ABSENT);
}

// Needs the mutex.
void em_ram_use::let_go() {
    for (int32_t expert : held) {
        here->experts[size_t(expert)].held -= 1;
    }
    held.clear();
    ram.arrivals.notify_all(); // em_ram_leave may wait
}

void em_ram_use::release() {
    if (here) {
        std::lock_guard<std::mutex> lock(ram.mutex);
        let_go();
    }
}
