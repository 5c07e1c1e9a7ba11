/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The wire between kernel and Python: every record that travels through a shard's ring buffer.
 * Little-endian, 8-byte aligned, fixed header, then exactly the captured bytes. The Python side is
 * rover_plugin/capture/records.py; tests/kernel/records_layout_test.py compiles this file and proves both equal.
 * Times are CLOCK_MONOTONIC nanoseconds. Positions are TCP sequence numbers (32 bits, extended in user space).
 */
#ifndef ROVER_RECORDS_H
#define ROVER_RECORDS_H

enum record_kind {
	RECORD_CALL = 1,  /* one I/O call that moved bytes: struct call_record, then `captured` bytes */
	RECORD_OPEN = 2,  /* a connection is (or failed to be) established, or was met: struct open_record */
	RECORD_CLOSE = 3, /* its end, once: struct close_record */
};

enum direction {
	INGRESS = 0, /* read by the watched process */
	EGRESS = 1,  /* written by it */
};

/* How a watched process came to a connection. */
enum open_cause {
	CAUSE_MET = 0,     /* older than the agent, inherited or passed: seen at its first I/O */
	CAUSE_CONNECT = 1, /* connect(2), established or failed */
	CAUSE_ACCEPT = 2,  /* accept(2), accept4(2) */
};

/* Our own numbering of system calls, the same on every architecture. 0 = not one of ours. */
enum call_class {
	CALL_NONE = 0,
	CALL_READ = 1,
	CALL_READV = 2,
	CALL_RECVFROM = 3,
	CALL_RECVMSG = 4,
	CALL_RECVMMSG = 5,
	CALL_WRITE = 6,
	CALL_WRITEV = 7,
	CALL_SENDTO = 8,
	CALL_SENDMSG = 9,
	CALL_SENDMMSG = 10,
	CALL_SENDFILE = 11,
	CALL_SPLICE = 12,
	CALL_CONNECT = 13,
	CALL_ACCEPT = 14,
	CALL_CLOSE = 15,
	CALL_SHUTDOWN = 16,
	CALL_PREADV2 = 17,
	CALL_PWRITEV2 = 18,
	CALL_OTHER = 19, /* bytes moved without a call of ours: io_uring, in-kernel users */
	CALL_CLASSES = 20,
};

struct record_header {
	__u8 kind;       /* enum record_kind */
	__u8 call;       /* enum call_class */
	__u8 direction;  /* enum direction, calls only */
	__u8 flags;      /* kind-specific */
	__u16 lane;      /* sequence numbers count per lane: one per CPU, program and kind of ring */
	__u16 provisional; /* nobody has chosen its process yet: it goes apart */
	__u32 sequence;  /* of this lane in this shard; a step of more than 1 is loss */
	__u32 tgid;      /* process that made the call */
	__u64 connection; /* id, unique for the life of the agent */
	__u64 enter_ns;
	__u64 exit_ns;
};

/* header.flags of a call: */
#define HOW_WALKED 1 /* the kernel side knows what the next byte of this direction is */
#define HOW_PIECES 2 /* what follows are pieces: each a struct call_piece and its bytes */
#define HOW_CHUNKS 4 /* what follows are bytes from the front, bytes from the end, and a struct call_chunks */

struct call_record {
	struct record_header header;
	__u32 size;     /* bytes the call moved */
	__u32 offset;   /* of the first captured byte within the call */
	__u32 captured; /* bytes that follow this header */
	__u32 position; /* sequence number of the call's first byte */
	__u32 opposite; /* sequence number reached in the other direction when the call returned */
	__u32 tid;
};

struct call_piece {
	__u32 unseen; /* bytes of the call that were not copied since the piece before */
	__u32 length; /* bytes that follow this header */
};

/* Chunks of an HTTP/1 message (RFC 9112 7.1) whose size lines were read here, so that nobody need read them again. */
struct call_chunks {
	__u32 front;   /* copied bytes before them */
	__u32 unseen;  /* bytes of the call that are theirs; what is copied behind them begins there */
	__u32 content; /* how many of these are content */
	__u32 left;    /* content of the last chunk that is still to come */
};

#define PROVISIONAL_LANE 0x8000 /* header.lane: of a ring for processes that nobody had chosen yet */

#define OPEN_FAILED 1 /* header.flags: connect failed with `error` */

struct open_record {
	struct record_header header; /* enter/exit: of connect or accept; both the time it was met otherwise */
	__u8 local[16];  /* IPv4 in the first 4 bytes, or IPv6; network order */
	__u8 remote[16];
	__u16 local_port; /* host order */
	__u16 remote_port;
	__u16 family; /* AF_INET or AF_INET6 */
	__u8 cause;   /* enum open_cause */
	__u8 state;   /* TCP state now, net/tcp_states.h */
	__u32 netns;  /* inode number of the network namespace */
	__s32 error;  /* errno of a failed connect, else 0 */
	__u32 written; /* sequence numbers of the next byte to write and to read */
	__u32 read;
	__u64 cookie;  /* the kernel's struct sock address: identity while the connection lives */
};

#define OPEN_BEGINNINGS 2 /* header.flags: the record is a struct met_record */

/* A connection met midway, and where its streams once began: the other end's record says the same, mirrored. */
struct met_record {
	struct open_record open;
	__u32 first_written; /* our initial sequence number, or the one after it (docs/naming.md) */
	__u32 first_read;    /* the peer's initial sequence number plus 1 */
};

#define CLOSE_BY_PEER 1    /* header.flags: reset or time-out, not a call of ours */
#define CLOSE_PEER_ENDED 2 /* header.flags: the peer's FIN came before its owner gave it up */
#define CLOSE_SHUT_FIRST 4 /* header.flags: its owner had shut its sending side down before that FIN */

struct close_record {
	struct record_header header;
	__u32 written; /* last sequence numbers */
	__u32 read;
	__u32 retransmitted; /* segments sent again */
	__u32 smoothed_rtt_us;
	__u64 bytes_received; /* tcp_sock counters: what the kernel says moved */
	__u64 bytes_acked;
};

#endif
