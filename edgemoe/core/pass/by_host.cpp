// A layer whose rows are exchanged with the host.

#include "pass/pass.h"

int em_by_host_unforced(em_pass * p, em_block & b) {
    if (!em_view_start(p, b)) {
        return STATUS_ALLOC_FAILED;
    }
    em_view_wait(p);
    return em_by_host_seen(p, b);
}

int em_by_host(em_pass * p, em_block & b) {
    em_force_ids(p, b);
    return em_by_host_unforced(p, b);
}

int em_by_host_seen(em_pass * p, em_block & b) {
    em_block & v = p->view.block;
    if (!em_ids_ok(v.ids, b.layer->experts)) {
        return STATUS_FAILED;
    }
    em_report_view(p);
    const int status = em_host_block(&p->cpu, v);
    if (status == STATUS_SUCCESS) {
        G.ggml_backend_tensor_set_async(p->inner, b.down(), v.down()->data, 0, G.ggml_nbytes(b.down()));
        G.ggml_backend_synchronize(p->inner);
    }
    return status;
}
