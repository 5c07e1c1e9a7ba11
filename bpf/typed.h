/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Kernel memory by its type: what the verifier knows the type of can be loaded by an instruction. A helper call for the
 * same costs 20 to 40 ns where functions return slowly (x86 mitigations), and a call's record would need a dozen.
 */

#define READ(from)                                                                     \
	({                                                                             \
		__typeof__(from) value_ = 0;                                           \
		bpf_probe_read_kernel((void *)&value_, sizeof(value_), (void *)&(from)); \
		value_;                                                                \
	})

/* The current task and its registers come with their types since 5.15: FIELD(task->tgid). */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 15, 0) && !PLAIN
#define CURRENT_TASK() ((struct task_struct *)bpf_get_current_task_btf())
#define USER_REGISTERS(task, raw) ((struct pt_regs *)bpf_task_pt_regs(task))
#define FIELD(from) (from)
#else
#define CURRENT_TASK() ((struct task_struct *)bpf_get_current_task())
#define USER_REGISTERS(task, raw) ((struct pt_regs *)(raw))
#define FIELD(from) READ(from)
#endif

/*
 * Any address gets one since 6.2: LOAD(TYPED(file, address)->f_mode). bpf_rdonly_cast is no function at run time, and
 * loads through it from wrong addresses give 0. Its call is completed by rover_plugin/capture/build.py. The name is our
 * own, as newer bpftools declare the kernel's functions under theirs.
 */
#if defined(BTF_FUNC_bpf_rdonly_cast) && !PLAIN
static void *(*rover_rdonly_cast)(const void *, u32) = (void *)BTF_FUNC_bpf_rdonly_cast;
#define TYPED(type, address) ((struct type *)rover_rdonly_cast((void *)(address), BTF_STRUCT_##type))
#define LOAD(from) (from)
#else
#define TYPED(type, address) ((struct type *)(address))
#define LOAD(from) READ(from)
#endif
