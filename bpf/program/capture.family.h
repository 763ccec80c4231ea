/* What a capture notes of a packet's flow; see capture.h. */

/* The packet has a flow. */
static __always_inline void observe_flow_FAM(struct flow_FAM *flow)
{
#ifdef CAPTURE
	struct observed *observed = observed_here();

	observe_farm(flow->farm, flow->backend);
	if (observed && !(flow->flags & (FLOW_FLAG_FORWARD | FLOW_FLAG_OTHER_FAMILY)))
		__builtin_memcpy(observed->client, &flow->destination, sizeof(flow->destination));
#endif
}
