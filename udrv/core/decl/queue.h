struct udrv_queue_ops { ...; };

struct udrv_queue {
	const struct udrv_queue_ops *ops;
	void *handle;
};

void udrv_qp_as_queue(struct udrv_qp *qp, struct udrv_queue *queue);
