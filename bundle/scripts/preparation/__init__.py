"""From the folders that people have to a datalist: what lies in them, who is who, and which list it goes into."""
