"""Every bound of the protocol and the reason for its number, in one place."""

from __future__ import annotations

MAX_FRAME_BYTES = 1 << 20
"""One payload frame. libzmq's heartbeat timer is reset by complete frames only, so a large frame on
a slow link kills its own connection (a 16 MiB frame over 2 MiB/s never arrives)."""
MAX_FRAMES = 64
"""Payload frames of one message: with MAX_FRAME_BYTES, 64 MiB per message."""
MAX_PAYLOAD_BYTES = MAX_FRAME_BYTES * MAX_FRAMES
MAX_UNFINISHED_BYTES = (MAX_FRAMES + 1) * (MAX_FRAME_BYTES + 1024)
"""What may have arrived on a connection of a message that is not whole: the largest one, with what ZeroMQ and
encryption add to each frame."""
MAX_HEADER_BYTES = 8192
"""msgpack header of one message; the usual one has under 200."""
MAX_TEXT_CHARS = 512
"""A sentence for people, or an address; with a few of them a header still fits."""
MAX_DIMENSIONS = 4
"""Of a tensor: batch, channels, height and width."""
MAX_DIMENSION = 1 << 20
"""Far above any real one; how many values a tensor has is bounded by the size of its payload."""
MAX_ITEMS_PER_BYTE = 2
"""No codec packs more than two items into a byte, so a header cannot ask for a huge tensor without
paying for a large payload: what a payload decodes to is at most 16 times its size."""
MAX_TENSORS = 4
"""Tensors travelling together: the activation and what rides along with it, such as labels."""
MAX_STAGES = 256
"""A route, one session per stage, fits a header: 9 bytes each."""
MAX_LAYERS = 1 << 16
"""Of a model: a worker that gets their state remembers for each where it is."""
MAX_MICROBATCHES = 8192
"""Microbatches of one step: a ledger is a bitmap of this many bits in a header."""
MAX_LEDGER_BYTES = MAX_MICROBATCHES // 8
MAX_PARTICIPANTS = 256
"""Workers of one stage that reduce together: their sessions are listed in a header."""
MAX_LEASES_PER_WORKER = 64
"""Of one broker: they are listed in a header."""
MAX_MEMBERS = 4096
"""Processes in one view."""
MAX_REMEMBERED_PEERS = 4 * MAX_MEMBERS
"""Connections of which a process remembers how far they are, those that are gone included: whoever dials makes one."""
MAX_UNREAD_PAYLOADS = 64
"""Messages of one peer that wait unread at a socket that takes payloads; each may have megabytes."""
MAX_ENDED_LIVES = 64
"""Lives of one node that the trainer remembers: a late copy of their Register must not end the present one."""
MAX_ENDED_NODES = MAX_MEMBERS
"""Nodes whose ended lives are remembered, those of which one has ended last: a process without a name has another one
in each life. When a whole swarm has ended since, no copy is on its way any more."""
MAX_COMEBACKS = 3
"""Times within FEUD_S that a process may come back which another one of its name had ended: more are two that fight."""
FEUD_S = 60.0
"""And how long nobody of that name is let in then: both ask once per heartbeat, so both are told."""
MAX_VIEW_BYTES = MAX_FRAME_BYTES
"""A view is one frame: 256 bytes for each of MAX_MEMBERS."""

MAX_ACCUSED = 16
"""Silent peers that one heartbeat names: with more, it is the sender that is cut off."""
MAX_FAILED_WORKERS = 3
"""Workers that may fail at one microbatch before the run ends: with fewer in its stage, all of them."""
MAX_FAILURES = 9
"""Times that one microbatch may fail before the run ends, however few workers that were."""

GENERATION_LEAP = 1 << 16
"""A trainer that starts again takes one of so many next generations, at random: 65 000 starts fit the field."""
HEARTBEAT_S = 1.0
"""Default heartbeat interval; every deadline follows from it."""
SILENCE_HEARTBEATS = 3.0
"""A process that is silent for so long is given up: two heartbeats may get lost."""
DOUBT_HEARTBEATS = 0.5
"""Whoever owes an answer for longer, or a heartbeat, gets nothing new as long as there is somebody else."""
ANSWER_HEARTBEATS = 0.9
"""A broker answers a worker no more often: about once per interval."""
DEAF_HEARTBEATS = 2.0
"""Who has not heard the trainer for so long says so: the trainer speaks twice per interval, ..."""
DEAF_LOADING_HEARTBEATS = 30.0
"""... but what it says waits behind a checkpoint's files. ..."""
DEAF_AGAIN_HEARTBEATS = 0.9
"""... Believed if it is still so after so long."""
GONE_HEARTBEATS = 0.4
"""A process whose connection is gone is given up after this, unless it speaks over another one."""
FIRST_QUARANTINE_HEARTBEATS = 4.0
"""Who was cut off a second time is let in again after so long, and after twice as long each further time
(MOST_DOUBLINGS times)."""
FORGIVEN_HEARTBEATS = 120.0
"""Who has not been cut off for so long since it was let in begins anew."""
QUIET_HEARTBEATS = 1.5
"""Of two processes that do not reach each other it is rather the one that the trainer has not heard for so long: longer than
from one heartbeat to the next, and shorter than what others wait before they accuse."""
NO_BROKER_HEARTBEATS = 2.0
"""How long a stage may be without a broker before one of another stage goes there: one that is started again at once
is there by then."""
EMPTY_STAGE_HEARTBEATS = 5.0
"""How long a stage may be without a worker that holds its parameters before the swarm goes back to a checkpoint:
one that was frozen or cut off may still return with them."""
UNSEEN_HEARTBEATS = 2.0
"""A microbatch that nobody has reported for so long is lost: what is on its way is in nobody's report."""
UNSEEN_AFTER_LOSS_HEARTBEATS = 0.5
"""The same after a process was given up, once everybody who is left has reported since."""
EVALUATION_HEARTBEATS = 5.0
"""An evaluation that brings no loss for so long is begun again, and then after twice as long each time."""
MAX_ASKED = 8
"""Times that one range of a checkpoint is asked for, ever more rarely, before there is none of that step."""
STUCK_HEARTBEATS = 3.5
"""The least time that a worker may be busy with one task ..."""
STUCK_TIMES = 5.0
"""... and the same in multiples of what such a task usually takes: a job on average, an optimizer's step or a sum
at most, lately, or what the rehearsal took. The longer of the two counts."""
MAY_HANG_TIMES = 2.0
"""From so many times as long on, and a heartbeat at least, it is not counted on: what others hold alone is not safe with it."""
STUCK_ENDS = 6.0
"""A process that was given up for that ends itself after so many times as long, or after STUCK_FIRST_S if that is less."""
STUCK_ENDS_SPARE = 1.25
"""The same if its stage's state is safe without it, it has done such a task before, and did not end so soon lately."""
SAFE_COPIES = 2
"""So many others have to hold that state: if it was one, what a process holds that is only slow would be the last copy as
soon as that one dies."""
STUCK_FIRST_S = 300.0
"""While the parameters are made or brought, and before the first job of each sort of layers that refuse a rehearsal:
compiling or a cold device may take minutes."""
RESEND_HEARTBEATS = 1.0
"""An unacknowledged message is sent again after this many heartbeats, and then after twice as many each time."""
MOST_DOUBLINGS = 4
"""How often that wait doubles: after a loss that lasted, a repetition comes within 16 times the first wait."""
FIRST_BANDWIDTH_BYTES_PER_S = 12.5e6
"""At which a worker is taken to get a stage's state before anybody has: half of 200 Mb/s, beside the run's own traffic."""
TOGETHER_HEARTBEATS = 4.0
"""Workers that were given up within so long were cut off by the same thing, and come back together, ..."""
ABSENT_HEARTBEATS = 60.0
"""... if they do within so long."""
TRAVEL_HEARTBEATS = 10.0
"""How long a worker that was moved counts in its new stage before it has registered there."""
LOSSES_REMEMBERED_S = 1800.0
"""So long after a loss no plan leaves a stage with one who holds its state, since that one may be the next."""
WAITING_RATES = 1.25
"""A stage that is faster than the slowest by so much waits for it: more than speeds are mismeasured by."""
MAX_SPEED_RATIO = 100.0
"""Nobody counts as further from the median speed when it is planned who works where: a processor beside a large card is
within it, and a report that is wrong by more would empty or fill a whole stage."""
PREFETCH = 2
"""Jobs leased to one worker: one running, one arriving while it runs; what is unfinished comes on top."""
MAX_UNFINISHED = 8
"""Jobs of a worker of which dx is out and the weights' gradients are not computed yet; each holds a graph's memory."""
CREDIT_UNITS = 2
"""Microbatches that a broker lets each producer send ahead while it has room."""
BROKER_CAPACITY_BYTES = 1 << 30
"""Default bound of what a broker keeps in memory."""
REDUCE_CHUNK_BYTES = 1 << 20
"""One chunk of an all-reduce: one frame, so that other traffic can pass between."""
REDUCE_WINDOW = 8
"""Unacknowledged chunks per peer during an all-reduce."""
STATE_RANGE_BYTES = 4 << 20
"""One answer to a Pull: enough that asking costs nothing, few enough that others get their turn."""
MAX_IMPORTING = 32
"""Ranges of a state that may wait for the compute thread before more are asked for."""
OUTBOX_LENGTH = 4
"""Outputs waiting for credit at a worker before it takes no new jobs."""
TURN_MESSAGES = 64
"""Messages that one turn of a poll loop takes from one socket before it looks at the others."""
MAX_BEQUESTS = 64
"""Workers of one step that leave their shares to others: they are listed in a header. The next ones wait for the commit."""
MAX_BEQUEST_BYTES = 4096
"""Of the ledgers that belong to that list."""
MAX_DONORS = 4
"""Workers that give their state to one joiner: with more none gets its uplink back sooner."""
MAX_ASKED_OF_ONE = 3
"""Times that one of several donors is asked for a range before another is asked for the file."""
LEND_HEARTBEATS = 4.0
"""How long after it was asked a donor keeps, over a commit, what it was asked for: two of three may get lost."""
MAX_RETAINED = 16
"""Layers that a donor keeps as they were for those who are in the middle of them; few at a time, unless they are small."""
MAX_GRADIENTS = 4
"""Steps of which a donor keeps the gradient for those who catch up, who ask for these before anything else. A layer that is
all of a stage takes, at a gradient per step, as long as three: its parameters and two moments."""
MAX_PULLS = 64
"""Pulls that one worker has in work; more are dropped, and repeated by whoever asked."""
PULLS_OF_ONE = 16
"""Ranges that a joiner asks of one donor at a time, of as many layers: they are given between two jobs, and with as many
layers as this, one job per step would do ..."""
PULLED_BYTES = 8 << 20
"""... but no more once they are this many bytes: 0.3 s of an uplink of 200 Mb/s that the step in work has to share."""
MAX_CHUNKS = 1 << 16
"""Chunks of one shard: 64 GiB of gradient."""
STATUS_S = 2.0
"""Between two lines of status for systemd: soon enough for who looks at them, too rare to cost anything."""
REPORTS_PER_WATCHDOG = 4
"""Reports in the time after which systemd's watchdog ends a process: all of them but one may be late or lost."""
DRAIN_S = 10.0
"""How long a process that is asked to leave may take to do so without a loss: service managers kill after 90 s, and
whoever wants his machine back does not wait so long."""
COMPANY_HEARTBEATS = 2.0
"""So long after one of a machine has said that it leaves the others of that machine are thought to do so, too: who leaves says so
in each heartbeat."""
SETTLING_HEARTBEATS = 0.25
"""How long the last of a stage may wait for a successor from a machine of which somebody leaves: if that one leaves as
well, it has said so by then."""
LINGER_S = 0.2
"""How long a process that ends waits for its last messages to leave."""

GREET_S = 0.5
"""How often a trainer with a run to offer greets the beacons that it hears, and who looks for one: a run is noticed within
this."""
GREET_CALM_S = 4.0
"""How often beacons that hear each other greet each other: of n machines each sends and answers (n - 1) / 2 small messages a
second, all in all."""
GREET_LONGEST_S = 4.0
"""Between two tries of an address that does not answer: each takes twice the wait of the one before it."""
GREETED_S = 2.0
"""A run that has not been offered again for so long is over."""
MISSED_GREETINGS = 4
"""Whoever has not answered for so many intervals is not heard any more."""
FORGET_S = 60.0
"""An address that has not answered for so long is dropped, unless it is a seed; whoever is there says so again."""
MAX_CONTACTS = 256
"""Beacons that a beacon keeps in touch with: a connection each. Forged addresses push out no seed and nobody that
answers."""
MAX_KNOWN = 16
"""Addresses in one greeting: with MAX_ADDRESS_CHARS each they fit a header."""
MAX_OFFERS = 8
"""Runs of one swarm at a time that a beacon tells of."""
MAX_MACHINE_CHARS = 64
"""The name of a machine, a run or a release: a label of the domain name system has 63."""
MAX_NODE_CHARS = 128
"""The name of a process, in sentences beside others: by itself its role, its machine's name and a number."""
MAX_ADDRESS_CHARS = 64
"""`tcp://[`, 39 characters of IPv6, a zone, a port."""
MAX_REPORTED_CONTACTS = 8
"""In one Inspection: with all their texts they fit a header."""
MAX_SIGHTINGS = 64
"""Addresses seen by mDNS that wait for the loop; of more, the newest."""
ALONE_S = 10.0
"""After so long without an answer from anybody, a beacon says what it has tried."""
ABANDONED_S = 20.0
"""How long a trainer is silent before its workers listen whether there is another run: one that is started again is back
within seconds."""
LISTEN_S = 3.0
"""How long they listen then: longer than GREETED_S, and than a beacon that has just begun to greet takes."""
LISTEN_EVERY_S = 10.0
"""And how often, while it stays silent."""
AVOID_S = 5.0
"""How long a run that is over is not tried again: its offer is heard for GREETED_S more."""
REFUSED_S = 60.0
"""How long a run that has refused a process is not tried again: it may have been full."""
PROBE_BYTES = 8 << 20
"""What one measurement of bandwidth sends: 0.3 s at 200 Mb/s."""
MEASURE_S = 10.0
"""How long it may take: 6.7 Mb/s, below which nothing trains anyway."""
