#pragma once

// Ranges of addresses whose pages come and go. Owner: the room that reserved a range. No lock: the system has its own.

#include <cstddef>

constexpr std::size_t EM_PAGE = 4096;

void * em_pages_reserve(std::size_t bytes); // addresses without pages; they read as zeros. Null: no addresses
void   em_pages_release(void * range, std::size_t bytes);
void   em_pages_empty(char * from, std::size_t bytes); // the pages go back to the system
// Moves the pages to an empty place: their contents do not matter, and the system need not clear new pages.
void em_pages_move(char * from, char * to, std::size_t bytes);
// Whether so many moves to different places are possible: the system limits the pieces of a process's memory.
bool em_pages_movable(std::size_t pieces);
