/* SPDX-License-Identifier: GPL-2.0-only */
/* Where an architecture keeps a system call's arguments; they survive until the exit tracepoint. */

#if defined(__x86_64__)
#define ARGUMENT_0(user) FIELD((user)->di)
#define ARGUMENT_1(user) FIELD((user)->si)
#define ARGUMENT_2(user) FIELD((user)->dx)
#define ARGUMENT_3(user) FIELD((user)->r10)
#define SYSCALL_NUMBER_OF(user) FIELD((user)->orig_ax)
#define TS_COMPAT_BIT 2 /* arch/x86/include/asm/thread_info.h TS_COMPAT */
#define IS_COMPAT(task) (FIELD((task)->thread_info.status) & TS_COMPAT_BIT)
#define NUMBER_CLOSE 3
#elif defined(__aarch64__)
#define ARGUMENT_0(user) FIELD((user)->orig_x0) /* x0 holds the result by then */
#define ARGUMENT_1(user) FIELD((user)->regs[1])
#define ARGUMENT_2(user) FIELD((user)->regs[2])
#define ARGUMENT_3(user) FIELD((user)->regs[3])
#define SYSCALL_NUMBER_OF(user) FIELD((user)->syscallno)
#define TIF_32BIT_BIT (1 << 22) /* arch/arm64/include/asm/thread_info.h TIF_32BIT */
#define IS_COMPAT(task) (FIELD((task)->thread_info.flags) & TIF_32BIT_BIT)
#define NUMBER_CLOSE 57
#else
#error "rover knows the system call registers of x86-64 and arm64 only"
#endif

#define NUMBER_CLOSE_RANGE 436 /* everywhere */
