"""Child processes: started on a leash, supervised, and the API's behind one listening socket."""


class StartError(Exception):
    """Something that the operator can mend; the message is one sentence that says what."""
