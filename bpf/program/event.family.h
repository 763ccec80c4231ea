/* Reports changes of established connections to the daemon, which replicates them. Compiled out on a node without a peer. */

static __always_inline void report_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow, u8 type)
{
#ifdef REPLICATION
	struct flow_event_FAM *event = events_FAM.ringbuf_reserve(sizeof(*event));

	if (!event) {
		count(packet, COUNTER_EVENT_RING_FULL);
		return;
	}
	event->key = *key;
	event->flow = *flow;
	event->type = type;
	__builtin_memset(event->zero, 0, sizeof(event->zero));
	events_FAM.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
#endif
}
