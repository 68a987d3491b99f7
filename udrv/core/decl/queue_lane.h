#define UDRV_EAGAIN ...

struct udrv_lane {
	struct udrv_batch batch;
	struct udrv_completion done;
	uint64_t holder;
	...;
};

void udrv_lane_init(struct udrv_lane *lane, const struct udrv_queue *queue, uint16_t slot,
		    uint64_t spin_ns, uint64_t slice_ns);
int udrv_lane_run(struct udrv_lane *lane, const struct udrv_batch *target, uint32_t opcode,
		  uint64_t slba, uint32_t nlb);
int udrv_lane_held(const struct udrv_lane *lane, const struct udrv_batch *target);
int udrv_lane_wait(struct udrv_lane *lane, const struct udrv_batch *target);
int udrv_lane_give_up(struct udrv_lane *lane, const struct udrv_batch *target, uint16_t slot);
int udrv_lane_lend(struct udrv_lane *lane, int lent);
