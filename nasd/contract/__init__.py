"""What both planes read: the words in which they speak of a search. It knows no other room."""
