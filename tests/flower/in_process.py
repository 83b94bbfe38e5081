"""A Flower grid whose nodes are in this process."""

from __future__ import annotations

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

# What Flower sets in the process of a server app, which makes messages.
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


class InProcess(Grid):
    """Nodes that answer at once. `spoil(grid, node, message, reply)`: the reply."""

    def __init__(self, app, nodes, spoil=lambda grid, node, message, reply: reply):
        self.app, self.spoil = app, spoil
        self.present = set(nodes)
        self.contexts = {
            node: Context(1, node, {"partition-id": node}, RecordDict(), {})
            for node in nodes
        }
        self.messages = []

    def set_run(self, run):
        raise AssertionError("one run")

    @property
    def run(self):
        raise AssertionError("one run")

    def create_message(self, *args, **kwargs):
        raise AssertionError("apps make messages themselves")

    def push_messages(self, messages):
        self.answers = {
            str(i): m for i, m in enumerate(self.send_and_receive(messages))
        }
        return list(self.answers)

    def pull_messages(self, message_ids):
        return [self.answers[number] for number in message_ids]

    def get_node_ids(self):
        return sorted(self.present)

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.messages.append(message)
            if node in self.present:
                reply = self.spoil(self, node, message, self._answer(node, message))
                replies += [reply] if reply is not None else []
        return replies

    def _answer(self, node, message):
        try:
            return self.app(message, self.contexts[node])
        except Exception as error:
            return Message(Error(0, str(error)), reply_to=message)
