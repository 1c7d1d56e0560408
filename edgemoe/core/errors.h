#pragma once

// Errors of the C interface. Owner: each thread has its own last text. No lock.

#include "edgemoe.h"

#include <string>

int em_fail(int status, const std::string & text); // keeps the text for em_last_error, returns status
