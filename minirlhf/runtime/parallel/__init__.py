"""One model on several processes: the strategy, sharded models, and forwards at each process's own pace.

strategy.py   the strategy of this process, and the mesh of all processes
sharding.py   FSDP2: a model in slices; copies of such a model
copies.py     the models of a job: sharded when they are loaded, or copied slice by slice
pace.py       processes that make different numbers of forwards
groups.py     the groups of an optimizer; ZeRO-1
gradients.py  the norm and the average of gradients, some of them in slices
"""
