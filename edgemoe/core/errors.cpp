#include "errors.h"

static thread_local std::string last_error;

int em_fail(int status, const std::string & text) {
    last_error = text;
    return status;
}

const char * em_last_error(void) { return last_error.c_str(); }
