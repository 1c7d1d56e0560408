#pragma once

// Reads of files past the system's cache, by a team of threads: the disk gets many reads at once.
//
// A read goes straight to its place in memory. Offset in the file and address have the same position within a page. Only the
// first and the last page of a read, which the read shares with other data, go through a page of the thread.
//
// Writer: any thread, under `mutex`. The counters are atomic. `arrived` is called without the mutex, by a thread of the team.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

enum class em_urgency : int { NOW, SOON, SPARE }; // a computation waits; one may wait soon; nothing else is to be read

struct em_disk_read {
    int64_t key    = 0; // names the owner's purpose
    int32_t file   = 0;
    int64_t offset = 0;
    size_t  bytes  = 0;
    char *  to     = nullptr;
    // Pages of something that is not needed any more move to the place of the read, before the read; null: none do.
    char *  from       = nullptr;
    char *  from_to    = nullptr;
    size_t  from_bytes = 0;
    int64_t from_key   = -1;
};

struct em_disk_file {
    std::string name;            // for messages
    int         handle = -1;
    bool        direct = false; // the reads leave out the system's cache
};

struct em_disk {
    static constexpr int THREADS = 16; // measured: docs/log.md

    std::vector<em_disk_file> files;
    std::vector<std::thread>  threads;
    std::mutex                mutex;
    std::condition_variable   changed;
    std::deque<em_disk_read>  queue[3]; // by urgency
    bool                      stopping = false;
    std::string               failure;  // the latest read that failed, as a sentence
    std::atomic<int64_t>      bytes{0}, reads{0};

    std::function<void(const em_disk_read & read, bool ok)> arrived;

    ~em_disk();
};

// Opens the files and starts the team. Returns the reason if that is impossible, else an empty text.
std::string em_disk_open(em_disk & disk, const std::vector<std::string> & paths);
void        em_disk_close(em_disk & disk); // waits for reads under way; drops all others
void        em_disk_queue(em_disk & disk, const std::vector<em_disk_read> & reads, em_urgency urgency);
void        em_disk_hurry(em_disk & disk, int64_t key); // reads of this key that still wait become urgent
std::string em_disk_failure(em_disk & disk); // empty: none since the last call
