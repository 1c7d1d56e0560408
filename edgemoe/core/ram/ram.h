#pragma once

// Experts in RAM of our own, for a model that is larger than the RAM: the third tier is the disk.
//
// Each tensor of experts gets a range of addresses as large as the tensor. An expert that is in RAM has pages at its place in
// the range; all other places have no pages. So every reader of weights finds an expert where the tensor says. A reader must use
// the experts by em_ram_use: without that, a place reads as zeros.
//
// An expert is ABSENT, READING or PRESENT. `held`: somebody reads its weights. `wanted`: somebody will soon; an expert that is held
// or wanted keeps its pages. All experts together take at most `budget` bytes. If there is no room, a new expert inherits the pages of
// the least worthy expert of a layer that has more experts than its `quota`. The quotas leave room for experts on their way.
//
// Writer: this room, under `mutex`. The pages of an expert are written by the disk's team while the expert is READING.
// Order of locks: em_residents::mutex, em_ram::mutex, em_disk::mutex.

#include "disk/disk.h"
#include "edgemoe.h"
#include "measures/counters.h"
#include "measures/rates.h"
#include "model/block.h"

#include <deque>

enum class em_place_state : uint8_t { ABSENT, READING, PRESENT };

struct em_ram_expert {
    em_place_state state  = em_place_state::ABSENT;
    bool           wanted = false;
    bool           failed = false; // its latest read
    uint8_t        parts  = 0;     // reads under way
    uint8_t        leaves = 0;     // reads under way that inherit its pages
    uint16_t       held   = 0;
    float          heat   = 0; // uses, in units that grow with every token
};

// The place of one tensor: in the file, and in our range of addresses.
struct em_ram_range {
    int32_t file   = 0;
    int64_t offset = 0;
    void *  memory = nullptr; // the range, from a page on
    size_t  bytes  = 0;
    size_t  stride = 0;       // of an expert
    void *  mapped = nullptr; // where llama.cpp mapped the tensor
};

struct em_ram_layer {
    std::atomic<bool>          ours{false}; // false: llama.cpp's mapping has the layer
    size_t                     index = 0;
    em_ram_range               range[PROJ_COUNT];
    std::vector<em_ram_expert> experts;
    int32_t                    quota = 0, kept = 0; // kept: experts that are not ABSENT
    int64_t                    expert_bytes = 0;    // of weights
};

// Any thread reads them.
struct em_ram_counters {
    std::atomic<int64_t> missed_bytes{0}, wait_ns{0}; // of experts that were needed and not in RAM; of computations for the disk
};

struct em_ram {
    em_model & model;
    em_rates & rates;

    std::atomic<bool>         on{false}; // fixed while computations run
    em_ram_counters           count    = {};
    em_disk                   disk     = {};
    std::mutex                mutex    = {};
    std::condition_variable   arrivals = {};
    std::deque<em_ram_layer>  layers   = {}; // by index
    int64_t                   budget = 0, used = 0, reserve = 0; // reserve: of the budget, for experts on their way
    int32_t                   at_once = 1; // experts that the reserve has room for
    bool                      moves   = false; // pages can be inherited
    float                     unit    = 1;     // of heat now
};

// open.cpp
// Takes the weights of all layers out of llama.cpp's mapping. Returns the reason if that is impossible.
std::string em_ram_open(em_ram & ram, const std::vector<std::string> & paths, const std::vector<em_expert_place> & places,
                        int64_t budget, int32_t at_once);
void        em_ram_close(em_ram & ram); // gives the mapping back
void        em_ram_leave(em_ram & ram, em_layer_t & layer); // this layer stays in llama.cpp's mapping from now on

// ram.cpp
void em_ram_arrived(em_ram & ram, const em_disk_read & read, bool ok); // from the disk's team
void em_ram_resize(em_ram & ram, int64_t budget);
void em_ram_seed(em_ram & ram, const float * heat); // [layers, experts] uses in earlier runs
void em_ram_fill(em_ram & ram); // reads the hottest experts that are not on the device, while nothing else is to be read
void em_ram_count(em_ram & ram, const em_layer_t & layer, const ggml_tensor * ids); // the tokens of a batch use these experts
// Reads an expert that the device gave up, if the layer may keep it and nothing else is to be read.
void    em_ram_back(em_ram & ram, const em_layer_t & layer, int32_t expert);
void    em_ram_drop(em_ram & ram, const em_layer_t & layer, int32_t expert); // the device holds it now
void    em_ram_sizes(em_ram & ram, int64_t & used, int64_t & budget); // zeros: not in use
bool    em_ram_fits(em_ram & ram, const em_layer_t & layer, int32_t experts); // so many experts may stay in RAM
// Gives the most experts of a layer that one computation may need at once.
int32_t em_ram_most(em_ram & ram, const em_layer_t & layer);

// The use of a layer's experts by one thread. Experts stay in RAM from `need` to `release`.
class em_ram_use {
  public:
    em_ram_use(em_ram & ram, const em_layer_t & layer, bool computes = true); // computes: count the time that it waits
    ~em_ram_use(); // releases everything
    em_ram_use(const em_ram_use &) = delete;
    em_ram_use & operator=(const em_ram_use &) = delete;

    // Announces the pairs to come, in their order, and moves the experts that are in RAM to the front. Pairs are sorted by expert.
    void plan(std::vector<em_pair> & pairs, int64_t from, int64_t to);
    // Gives the end of a graph that begins at `from` and needs no more experts than there is room for.
    int64_t end_of(const std::vector<em_pair> & pairs, int64_t from, int64_t to) const;
    bool    need(const em_pair * pairs, int64_t n); // waits for the experts. False: a read failed
    void    release();                              // the experts that were needed so far

  private:
    void let_go();
    void want(int32_t expert);
    void read_on();
    bool wait(std::unique_lock<std::mutex> & lock, size_t first, int64_t bytes);

    em_ram &             ram;
    em_ram_layer *       here; // null: the layer is in llama.cpp's mapping
    const int32_t        most; // experts at once
    const bool           computes;
    std::vector<int32_t> held, marked, planned; // marked: as wanted. planned: the next one at the back
};
