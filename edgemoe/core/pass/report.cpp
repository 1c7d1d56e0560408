// Routing of a pass, to the history and to the prefetch.

#include "pass/pass.h"

void em_report_prompt(em_pass * p) {
    for (const auto & seen : p->prompt.routing) {
        if (em_ids_ok(&seen.ids, seen.layer->experts)) {
            em_record(p->e->log, seen.layer->block, &seen.ids);
        }
    }
    p->prompt.routing.clear();
}

void em_report_view(em_pass * p) {
    p->view.unreported = false;
    em_report_prompt(p); // of the layers before: it was on its way before the view was
    em_record(p->e->log, p->view.block.layer->block, p->view.block.ids);
    em_look_ahead(p->e->prefetch, p->view.block);
}
