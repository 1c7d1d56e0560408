// See disk.h. On Linux O_DIRECT leaves out the cache, on macOS F_NOCACHE. A file system without both is read through the cache.

#include "disk/disk.h"
#include "memory/pages.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#if defined(_WIN32)

std::string em_disk_open(em_disk &, const std::vector<std::string> &) { return "this system has no positional direct reads"; }

static void work(em_disk &) {}

#else

#    include <fcntl.h>
#    include <sys/uio.h>
#    include <unistd.h>

namespace {
constexpr int64_t PAGE  = int64_t(EM_PAGE);
constexpr char    CUT[] = "the file is shorter than it was: it was cut or overwritten while the model was open";

struct free_memory {
    void operator()(void * p) const { free(p); }
};

// Two pages of a thread, for the first and the last page of a read.
class page_pair {
  public:
    page_pair() {
        void * p = nullptr;
        base.reset(posix_memalign(&p, size_t(PAGE), size_t(2 * PAGE)) == 0 ? static_cast<char *>(p) : nullptr);
    }
    char * first() const { return base.get(); }
    char * last() const { return base.get() + PAGE; }
    bool   made() const { return base != nullptr; }

  private:
    std::unique_ptr<char, free_memory> base;
};

// The parts of a read, one after the other in the file: its first page, whole pages in place, its last page.
struct parts {
    iovec   at[3];
    int     count = 0;
    int64_t from  = 0; // in the file, on a page
    int64_t bytes = 0;

    void add(char * to, int64_t n) {
        if (n > 0) {
            at[count++] = {to, size_t(n)};
            bytes += n;
        }
    }
};

// The bounds of a read in the file: its end, and the pages that it touches and holds.
struct span {
    int64_t end, first; // the read ends; its first page begins
    int64_t whole, last; // its whole pages begin and end

    explicit span(const em_disk_read & r)
        : end(r.offset + int64_t(r.bytes)), first(r.offset / PAGE * PAGE), whole((r.offset + PAGE - 1) / PAGE * PAGE),
          last(std::max(end / PAGE * PAGE, whole)) {}
};

parts parts_of(const em_disk_read & r, const span & s, const page_pair & pages) {
    parts p;
    p.from = s.first;
    p.add(pages.first(), s.whole > r.offset ? PAGE : 0);
    p.add(r.to + (s.whole - r.offset), s.last - s.whole);
    p.add(pages.last(), s.end > s.last ? PAGE : 0);
    return p;
}

// Copies the bytes that went through the pages of the thread.
void copy_ends(const em_disk_read & r, const span & s, const page_pair & pages) {
    if (s.whole > r.offset) {
        memcpy(r.to, pages.first() + (r.offset - s.first), size_t(std::min(s.end, s.whole) - r.offset));
    }
    if (s.end > s.last) {
        memcpy(r.to + (s.last - r.offset), pages.last(), size_t(s.end - s.last));
    }
}

// Returns the reason of a failure, else an empty text.
std::string read_parts(int handle, parts p, int64_t end) {
    int64_t at = p.from;
    iovec * v  = p.at;
    while (at < end) {
        const ssize_t n = preadv(handle, v, p.count, at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return std::string("the disk reports an error (") + strerror(errno) + ")";
        }
        if (n == 0) {
            return CUT;
        }
        at += n;
        if (at < end && at % PAGE != 0) { // in the middle of a page: the file ends there
            return CUT;
        }
        for (size_t left = size_t(n); left > 0 && p.count > 0;) {
            const size_t taken = std::min(left, v->iov_len);
            v->iov_base        = static_cast<char *>(v->iov_base) + taken;
            v->iov_len -= taken;
            left -= taken;
            if (v->iov_len == 0) {
                ++v, --p.count;
            }
        }
    }
    return "";
}

std::string serve(const em_disk_file & file, const em_disk_read & r, const page_pair & pages) {
    if (r.from) {
        em_pages_move(r.from, r.from_to, r.from_bytes);
    }
    const span        bounds(r);
    const parts       p   = parts_of(r, bounds, pages);
    const std::string why = read_parts(file.handle, p, bounds.end);
    if (!why.empty()) {
        return file.name + ": " + why;
    }
    copy_ends(r, bounds, pages);
#    if defined(__linux__)
    if (!file.direct) { // the cache would hold a second copy
        posix_fadvise(file.handle, off_t(p.from), off_t(p.bytes), POSIX_FADV_DONTNEED);
    }
#    endif
    return "";
}

void work(em_disk & disk) {
    const page_pair              pages;
    std::unique_lock<std::mutex> lock(disk.mutex);
    const auto                   next = [&] {
        return std::find_if(std::begin(disk.queue), std::end(disk.queue), [](const auto & q) { return !q.empty(); });
    };
    for (;;) {
        disk.changed.wait(lock, [&] { return disk.stopping || next() != std::end(disk.queue); });
        if (disk.stopping) {
            return;
        }
        auto &             queue = *next();
        const em_disk_read r     = queue.front();
        queue.pop_front();
        lock.unlock();
        const std::string why = pages.made() ? serve(disk.files[size_t(r.file)], r, pages) : "no memory for a read";
        disk.bytes += why.empty() ? int64_t(r.bytes) : 0;
        disk.reads += 1;
        if (!why.empty()) {
            std::lock_guard<std::mutex> again(disk.mutex);
            disk.failure = why;
        }
        disk.arrived(r, why.empty());
        lock.lock();
    }
}

em_disk_file open_file(const std::string & path) {
    em_disk_file file{path.substr(path.find_last_of('/') + 1)};
#    if defined(O_DIRECT)
    const page_pair page;
    file.handle = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (file.handle >= 0 && (!page.made() || pread(file.handle, page.first(), size_t(PAGE), 0) < 0)) { // a larger unit
        close(file.handle);
        file.handle = -1;
    }
#    endif
    file.direct = file.handle >= 0;
    if (!file.direct) {
        file.handle = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    }
#    if defined(F_NOCACHE)
    file.direct = fcntl(file.handle, F_NOCACHE, 1) == 0;
#    endif
    return file;
}
} // namespace

std::string em_disk_open(em_disk & disk, const std::vector<std::string> & paths) {
    for (const std::string & path : paths) {
        disk.files.push_back(open_file(path));
        if (disk.files.back().handle < 0) {
            return disk.files.back().name + ": " + strerror(errno);
        }
    }
    for (int i = 0; i < em_disk::THREADS; ++i) {
        disk.threads.emplace_back([&disk] { work(disk); });
    }
    return "";
}

#endif

em_disk::~em_disk() { em_disk_close(*this); }

void em_disk_close(em_disk & disk) {
    {
        std::lock_guard<std::mutex> lock(disk.mutex);
        disk.stopping = true;
    }
    disk.changed.notify_all();
    for (std::thread & thread : disk.threads) {
        thread.join();
    }
    disk.threads.clear();
#if !defined(_WIN32)
    for (const em_disk_file & file : disk.files) {
        if (file.handle >= 0) {
            close(file.handle);
        }
    }
#endif
    disk.files.clear();
}

void em_disk_queue(em_disk & disk, const std::vector<em_disk_read> & reads, em_urgency urgency) {
    {
        std::lock_guard<std::mutex> lock(disk.mutex);
        auto &                      queue = disk.queue[int(urgency)];
        queue.insert(queue.end(), reads.begin(), reads.end());
    }
    for (size_t i = 0; i < reads.size(); ++i) {
        disk.changed.notify_one();
    }
}

void em_disk_hurry(em_disk & disk, int64_t key) {
    std::lock_guard<std::mutex> lock(disk.mutex);
    auto &                      urgent = disk.queue[int(em_urgency::NOW)];
    for (em_urgency from : {em_urgency::SOON, em_urgency::SPARE}) {
        auto &     queue = disk.queue[int(from)];
        const auto rest  = std::stable_partition(queue.begin(), queue.end(), [&](const em_disk_read & r) { return r.key != key; });
        urgent.insert(urgent.end(), rest, queue.end());
        queue.erase(rest, queue.end());
    }
}

std::string em_disk_failure(em_disk & disk) {
    std::lock_guard<std::mutex> lock(disk.mutex);
    return std::exchange(disk.failure, {});
}
