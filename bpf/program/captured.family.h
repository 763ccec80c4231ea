/* What a capture looks up itself; see captured.h. */

#ifdef CAPTURE
/* The farm that a packet is for which was dropped before `xlb` looked for it. */
static __always_inline void observe_service_FAM(struct observed *observed)
{
	struct headers *headers = &observed->headers;
	struct vip vip = { .flags = VIP_FLAG_RANGES };
	struct flow_key_FAM key = {};
	struct service *service;

	__builtin_memcpy(&key.destination, headers->destination, sizeof(key.destination));
	key.destination_port = headers->destination_port;
	key.protocol = headers->protocol;
	service = find_service_FAM(&key, &vip);
	if (service)
		observed->record.farm = service->farm;
}
#endif
