/* A packet is suspended by one program and resumed by another: what was learnt from its headers goes through the scratch map.
 * The verifier forgets with it by which path that was learnt, so it follows what comes after once, not once for each path.
 */

static __always_inline void suspend_FAM(struct packet *packet, struct suspended_FAM *suspended)
{
	suspended->ip_bytes = packet->ip_bytes;
	suspended->fragment_id = packet->fragment_id;
	suspended->fragment = packet->fragment;
	suspended->transport = packet->transport - packet->network;
	suspended->protocol = packet->protocol;
	suspended->tcp_flags = packet->tcp_flags;
}

/* False: the packet is shorter than it was. */
static __always_inline bool resume_FAM(struct packet *packet, struct suspended_FAM *suspended)
{
	volatile struct suspended_FAM *known = suspended;

	packet->ethernet = (void *)(long)packet->context->data;
	packet->end = (void *)(long)packet->context->data_end;
	packet->network = packet->ethernet + 1;
	packet->transport = packet->network + (known->transport & 0x3fff);
	packet->ip_bytes = known->ip_bytes;
	packet->fragment_id = known->fragment_id;
	packet->fragment = known->fragment;
	packet->protocol = known->protocol;
	packet->tcp_flags = known->tcp_flags;
	return packet->network + IP_HEADER_BYTES_FAM <= packet->end && packet->transport + sizeof(struct udphdr) <= packet->end;
}
