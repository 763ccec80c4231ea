/* Writes flow events as the data plane would, one per run: for bench/replication.py.
 *
 * Not an XDP program, because a test run of one waits for an RCU grace period, about 10 ms.
 */
#include <uapi/linux/bpf.h>
#include "../bpf/program/maps.h"

BPF_ARRAY(pattern, struct flow_event_v4, 1);
BPF_ARRAY(written, u64, 1);

int generate(struct __sk_buff *context)
{
	int zero = 0;
	struct flow_event_v4 *from = pattern.lookup(&zero), *event;
	u64 *number = written.lookup(&zero);
	u32 client;

	if (!from || !number)
		return -1;
	event = events_v4.ringbuf_reserve(sizeof(*event));
	if (!event)
		return -1;
	__builtin_memcpy(event, from, sizeof(*event));
	client = htonl(0x0a000000 + *number % FLOWS);
	event->key.source.word[0] = client;
	event->flow.source.word[0] = client;
	events_v4.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	*number += 1;
	return 0;
}
