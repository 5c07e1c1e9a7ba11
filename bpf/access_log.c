/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the access log sees: I/O calls and the life of TCP connections of watched processes.
 * Raw tracepoints only; they exist on every kernel since 4.17 and cost the least.
 */
#include "records.h"
#include "typed.h"
#include "arch.h"
#include "maps.h"
#include "rings.h"
#include "sockets.h"
#include "connections.h"
#include "bytes.h"
#include "walk.h"
#include "lifetimes.h"
#include "calls.h"
#include "io_uring.h"
#include "processes.h"
