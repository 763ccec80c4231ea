/* bcc's map syntax and helpers as plain C, for clangd, ctags and other tools that read program.c (`make program.c`).
 *
 * bcc never sees this file: it has its own definitions and rewrites `map.lookup(…)` into calls of helpers.
 */
#pragma once
#include <uapi/linux/bpf.h>

#define BPF_TABLE_PINNED(TYPE, KEY, VALUE, NAME, ENTRIES, PIN, ...)                                                            \
	extern struct NAME##_map {                                                                                             \
		VALUE *(*lookup)(const KEY *);                                                                                 \
		int (*insert)(const KEY *, const VALUE *); /* BPF_NOEXIST */                                                   \
		int (*update)(const KEY *, const VALUE *); /* BPF_ANY */                                                       \
		int (*delete)(const KEY *);                                                                                    \
		void (*call)(void *, u32);                                                                                     \
	} NAME

extern u32 bpf_get_smp_processor_id(void);
extern u64 bpf_jiffies64(void);
extern u64 bpf_ktime_get_ns(void);
extern int bpf_redirect(u32 ifindex, u64 flags);
extern s64 bpf_csum_diff(const __be32 *from, u32 from_bytes, const __be32 *to, u32 to_bytes, u32 seed);
extern int bpf_xdp_adjust_head(struct xdp_md *context, int delta);
extern int bpf_xdp_adjust_tail(struct xdp_md *context, int delta);
extern int bpf_fib_lookup(void *context, struct bpf_fib_lookup *params, u32 params_bytes, u32 flags);
