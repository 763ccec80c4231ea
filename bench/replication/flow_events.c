/* Opens or closes one connection per run as the data plane would, without its packets: for bench/replication.
 *
 * Both entries go into `flows` and the change into the ring. Not an XDP program, because a test run of one waits for an RCU grace
 * period, about 10 ms.
 */
#include <uapi/linux/bpf.h>
#include "../../bpf/program/maps.h"

struct order {
	u64 next; /* number of the connection */
	u32 type; /* EVENT_TYPE_ESTABLISHED or _CLOSED */
	u32 zero;
};

BPF_ARRAY(pattern, struct flow_event_v4, 1); /* the forward entry of a real connection */
BPF_ARRAY(orders, struct order, 1);

int generate(struct __sk_buff *context)
{
	int zero = 0;
	struct flow_event_v4 *from = pattern.lookup(&zero), *event;
	struct order *order = orders.lookup(&zero);
	struct flow_key_v4 key, reply_key = {};
	struct flow_v4 forward, reply, *found;
	u8 ends = FLOW_STATE_FIN_HERE | FLOW_STATE_FIN_THERE;
	u32 number;

	if (!from || !order)
		return -1;
	number = order->next;
	order->next += 1;
	key = from->key;
	forward = from->flow;
	key.source.word[0] = htonl(FIRST_CLIENT + number);
	forward.destination.word[0] = htonl(FIRST_BACKEND + number);
	forward.last_seen = bpf_ktime_get_ns() >> TICK_SHIFT;
	if (order->type == EVENT_TYPE_CLOSED)
		forward.state |= ends;
	reply = forward;
	reply.source = key.destination;
	reply.destination = key.source;
	reply.source_port = key.destination_port;
	reply.destination_port = key.source_port;
	reply.flags = 0;
	reply_key.source = forward.destination;
	reply_key.destination = forward.source;
	reply_key.source_port = forward.destination_port;
	reply_key.destination_port = forward.source_port;
	reply_key.protocol = key.protocol;
	if (order->type == EVENT_TYPE_CLOSED) {
		found = flows_v4.lookup(&reply_key);
		if (found)
			found->state |= ends;
		found = flows_v4.lookup(&key);
		if (found)
			found->state |= ends;
	} else if (flows_v4.update(&reply_key, &reply) || flows_v4.update(&key, &forward)) {
		return -1;
	}
	event = events_v4.ringbuf_reserve(sizeof(*event));
	if (!event)
		return -1;
	event->key = key;
	event->flow = forward;
	event->type = order->type;
	__builtin_memset(event->zero, 0, sizeof(event->zero));
	events_v4.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}
