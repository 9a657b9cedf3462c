"""What two node files share. Node files import no other node file, so that each can be read alone."""
