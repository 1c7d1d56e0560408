#pragma once

// Objects of ggml that are freed with their owner. Writer: the owner. No lock.

#include "ggml/api.h"

template <typename T, void (*ggml_api::*FREE)(T *)> class em_owned {
  public:
    em_owned(T * object = nullptr) : object(object) {}
    em_owned(em_owned && other) noexcept : object(std::exchange(other.object, nullptr)) {}
    em_owned & operator=(em_owned other) noexcept {
        std::swap(object, other.object);
        return *this;
    }
    ~em_owned() {
        if (object) {
            (G.*FREE)(object);
        }
    }
        operator T *() const { return object; }
    T * operator->() const { return object; }
    T * release() { return std::exchange(object, nullptr); } // gives the object away: it is not freed with this owner

  private:
    T * object;
};

using em_stream = em_owned<ggml_backend, &ggml_api::ggml_backend_free>;
using em_buffer = em_owned<ggml_backend_buffer, &ggml_api::ggml_backend_buffer_free>;
using em_event  = em_owned<ggml_backend_event, &ggml_api::ggml_backend_event_free>;
using em_arena  = em_owned<ggml_context, &ggml_api::ggml_free>; // holds tensors and graphs, not their data

// Records the event on the stream; does nothing if there is no event.
inline void em_event_record(ggml_backend_event * event, ggml_backend * stream) {
    if (event && stream->iface.event_record) {
        G.ggml_backend_event_record(event, stream);
    }
}
inline void em_event_wait(ggml_backend * stream, ggml_backend_event * event) {
    if (event) {
        G.ggml_backend_event_wait(stream, event);
    }
}
inline void em_event_synchronize(ggml_backend_event * event) {
    if (event) {
        G.ggml_backend_event_synchronize(event);
    }
}
