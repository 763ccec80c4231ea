/* Answers a packet longer than the egress MTU with an ICMP error from the address it was sent to. Never in response to an
 * ICMP error, and rate-limited by may_send_error: a sender that gets no error retransmits.
 */

static __always_inline u32 send_too_big_FAM(struct packet *packet, u32 mtu)
{
	const u32 kept = sizeof(struct ethhdr) + QUOTE_BYTES_FAM;
	struct xdp_md *context = packet->context;
	struct ethhdr *ethernet, *original;
	void *end;

	if (!may_send_error(packet))
		return COUNTER_DROP_TOO_BIG;
	if (bpf_xdp_adjust_tail(context, (int)kept - (int)packet->frame_bytes) ||
	    bpf_xdp_adjust_head(context, -(int)ERROR_HEADER_BYTES_FAM))
		return COUNTER_DROP_TOO_BIG;
	ethernet = (void *)(long)context->data;
	end = (void *)(long)context->data_end;
	original = (void *)ethernet + ERROR_HEADER_BYTES_FAM;
	if ((void *)original + kept > end)
		return COUNTER_DROP_TOO_BIG;
	__builtin_memcpy(ethernet->h_dest, original->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, original->h_dest, ETH_ALEN);
	ethernet->h_proto = original->h_proto;
	write_too_big_FAM((void *)(ethernet + 1), mtu);
	packet->egress_ifindex = context->ingress_ifindex;
	return COUNTER_FORWARD_TOO_BIG;
}
