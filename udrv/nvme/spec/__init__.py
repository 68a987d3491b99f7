"""The NVMe specification as data: tables, one row a field, and what follows from them.

Sources, as the rows cite them: "Base" is NVM Express Base Specification 2.0, "NVM" is NVM Express
NVM Command Set Specification 1.0, "ZNS" is the Zoned Namespace Command Set Specification 1.1.

- `registers`: controller properties, their offsets and bit-fields
- `opcodes`:   opcodes, CNS values, feature and log page identifiers
- `command`:   the submission and completion queue entries, and builders of the commands we send
- `identify`:  the Identify data structures
- `logs`:      the log pages
- `table`:     the small language that the tables above are written in

Field names are the specification's acronyms in lower case, and the keys of `to_dict()` are those
of `nvme -o json`: whoever reads nvme-cli's output can read ours. All values come from a device that
may be broken or hostile: nothing here trusts a count or a size that was read.
"""
